"""A judge in words that compares two responses, or a response with the right one, always in both orders.

A judge alone prefers places: an untrained model may say A whatever stands there. Only a preference that stays when the two are
exchanged counts as one (Zheng et al. 2023, https://arxiv.org/abs/2306.05685, section 3.4).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightrft.config import JudgeConfig
from lightrft.datasets.judging import LETTERS, conversed
from lightrft.models.processor import Processor
from lightrft.rewards.function import Answer
from lightrft.rewards.models import Ask, judge_prompt, judge_template, replies_to, to_read
from lightrft.rewards.views import response
from lightrft.types import Completion, Prompt, Sampling
from lightrft.utils.choices import letter
from lightrft.workers.pool import Failure

TIE = 0.5
COMPARISONS, CONTRADICTIONS, FAILED = (
    "counts/judge_comparisons",
    "counts/judge_contradictions",
    "counts/judge_failed_comparisons",
)
"""Metrics of a call: comparisons with a verdict in both orders, those whose verdicts contradict each other, and those without."""

ALONE = "it has no sibling to be compared with (judge.against=siblings)."


@dataclass(frozen=True)
class Match:
    """Two texts that answer the same prompt, to be compared."""

    one: int
    """Place of a response among those that are judged."""
    other: int | None
    """Place of the other one; None: what is right."""


def ring(places: Sequence[int], rivals: int) -> list[Match]:
    """Each response with the next `rivals` of its group, the first following the last; no two twice.

    Every response meets 2 x rivals others, or all of them in a small group: group x rivals matches instead of the square.
    """
    n = len(places)
    found: dict[frozenset[int], Match] = {}
    for step in range(1, min(rivals, n - 1) + 1):
        for k in range(n):
            other = (k + step) % n
            found.setdefault(frozenset((k, other)), Match(places[k], places[other]))
    return list(found.values())


class ComparingJudge:
    """Gives each response its win rate, from 0 to 1, against siblings or against what is right, as judge.against says.

    A match is worth 1 to who wins it in both orders and 0.5 to both where the verdicts contradict each other; with several
    samples the mean share of verdicts. Texts that are the same tie, and are not asked about. Where a verdict is missing the
    match does not count; a response without any match that counts is a failure, never a zero.
    """

    def __init__(self, ask: Ask, processor: Processor, config: JudgeConfig, longest: int | None) -> None:
        """`longest`: tokens that can be asked; None: without limit."""
        self._ask, self._processor, self._config, self._longest = ask, processor, config, longest
        self._template = judge_template(config)
        self._counted = dict.fromkeys((COMPARISONS, CONTRADICTIONS, FAILED), 0.0)

    def counted(self) -> Mapping[str, float]:
        """What became of the matches of the last call, by metric."""
        return self._counted

    def __call__(self, answers: Sequence[Answer]) -> list[float | Failure]:
        """The win rate of each response, or why there is none. Asks once for all, as every rank does, also about none."""
        self._counted = dict.fromkeys(self._counted, 0.0)
        matches = list(self._matches(answers))
        shares: list[list[float | Failure]] = [[] for _ in answers]
        for match, worth in zip(matches, self._played(answers, matches), strict=True):
            shares[match.one].append(worth)
            if match.other is not None:
                shares[match.other].append(worth if isinstance(worth, Failure) else 1 - worth)
        return [self._rate(found) for found in shares]

    def _matches(self, answers: Sequence[Answer]) -> Iterator[Match]:
        if self._config.against == "target":
            yield from (Match(place, None) for place in range(len(answers)))
            return
        groups: dict[int, list[int]] = {}
        for place, answer in enumerate(answers):
            groups.setdefault(answer.group, []).append(place)
        for places in groups.values():
            yield from ring(places, self._config.rivals)

    def _rate(self, found: Sequence[float | Failure]) -> float | Failure:
        """The mean over the matches that count; the first reason where none does."""
        worth = [one for one in found if not isinstance(one, Failure)]
        if worth:
            return sum(worth) / len(worth)
        return next(iter(found), Failure(ALONE, ALONE))

    def _played(self, answers: Sequence[Answer], matches: Sequence[Match]) -> list[float | Failure]:
        """What each match is worth to its first response."""
        found: dict[int, float | Failure] = {}
        asked: list[tuple[int, tuple[Prompt, Prompt]]] = []
        for place, match in enumerate(matches):
            prompts = to_read(lambda pair: self._prompts(answers, pair), match)
            if isinstance(prompts, Failure):
                found[place] = prompts
            elif prompts is None:
                found[place] = TIE
            else:
                asked.append((place, prompts))
        c = self._config
        sampling = Sampling(n=c.samples, max_tokens=c.max_tokens, temperature=c.temperature)
        flat = [prompt for _, prompts in asked for prompt in prompts]
        said = iter(replies_to(self._ask, flat, sampling))
        for (place, _), (straight, turned) in zip(asked, zip(said, said, strict=True), strict=True):
            found[place] = self._worth(straight, turned)
        self._counted[FAILED] = float(sum(isinstance(one, Failure) for one in found.values()))
        return [found[place] for place in range(len(matches))]

    def _prompts(self, answers: Sequence[Answer], match: Match) -> tuple[Prompt, Prompt] | None:
        """The match in both orders; None for texts that are the same. ValueError if there is nothing to compare with."""
        answer = answers[match.one]
        mine = conversed(response(answer))
        theirs = target_text(answer) if match.other is None else conversed(response(answers[match.other]))
        if mine.strip() == theirs.strip():
            return None
        return self._prompt(answer, mine, theirs), self._prompt(answer, theirs, mine)

    def _prompt(self, answer: Answer, first: str, second: str) -> Prompt:
        filling = {
            "answer_a": first,
            "answer_b": second,
            "target": str(answer.prompt.target),
        }
        return judge_prompt(self._processor, answer, self._template, filling, self._longest)

    def _worth(
        self, straight: Sequence[Completion] | Failure, turned: Sequence[Completion] | Failure
    ) -> float | Failure:
        """From the replies in both orders what the match is worth to the response that `straight` shows first."""
        first, second = self._first_wins(straight), self._first_wins(turned)
        if isinstance(first, Failure) or isinstance(second, Failure):
            return first if isinstance(first, Failure) else second
        self._counted[COMPARISONS] += 1
        again = 1 - second
        self._counted[CONTRADICTIONS] += (first > TIE, first < TIE) != (again > TIE, again < TIE)
        return (first + again) / 2

    def _first_wins(self, replies: Sequence[Completion] | Failure) -> float | Failure:
        """The share of verdicts for the answer that is shown first; those that name none of the two do not count."""
        if isinstance(replies, Failure):
            return replies
        texts = [self._processor.text(reply.token_ids) for reply in replies]
        named = [found for text in texts if (found := letter(text)) in LETTERS]
        if not named:
            return Failure(
                f"the judge named neither A nor B; it said {texts[0][-300:]!r}.",
                "the judge named neither A nor B.",
            )
        return named.count(LETTERS[0]) / len(named)


def target_text(answer: Answer) -> str:
    """What is right, as a response would say it. ValueError for a prompt without a target."""
    target: Any = answer.prompt.target
    if target is None:
        raise ValueError(f"{answer.prompt.id} has no target to compare with (judge.against=target).")
    if isinstance(target, str):
        return target
    if isinstance(target, list) and target and all(isinstance(t, Mapping) and "role" in t for t in target):
        return conversed(target)
    return json.dumps(target, ensure_ascii=False, default=str)
