"""Comparisons to learn from: records to prompts with several responses in tokens, each with its grades."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from lightrft.config import DPOConfig, RewardTrainingConfig
from lightrft.datasets.conversations import answer_to
from lightrft.datasets.prompts import Asked, prepare
from lightrft.datasets.sides import Side, any_media, named, own_prompt, read_of, told_apart
from lightrft.datasets.sources import BadRecords
from lightrft.media.parts import has_media, readable
from lightrft.types import Message, Prompt, Record, Trajectory
from lightrft.utils.finite import finite_number

if TYPE_CHECKING:
    from lightrft.models.processor import Processor

log = logging.getLogger("lightrft")
Layout = Callable[[Sequence[Message], Sequence[Message]], tuple[list[int], list[bool]]]
"""A prompt and what is said then -> the tokens that follow the prompt, and the mask of those that are learned from or scored."""
LOPSIDED = 0.9
"""A share of pairs decided alike, or of grades with one sign, that a run warns of."""


@dataclass(slots=True)
class Kept:
    """What became of the comparisons of one split."""

    too_long: int = 0
    """Skipped, a response being over max_tokens."""
    broken: int = 0
    """Skipped, because there is nothing to compare or the chat template cannot lay them out."""
    parted_early: int = 0
    """Kept, of which a response is several turns: they part before the last question."""


@dataclass(frozen=True)
class Comparisons:
    """Makes records into prompts whose target is a list of `Side`s."""

    processor: Processor
    config: RewardTrainingConfig | DPOConfig
    layout: Layout
    """Lays out a response, see `scored` and `spoken`."""
    compares: bool
    """Whether the loss learns from nothing but differences of grades."""
    outputs: Sequence[str]
    """Names of the grades that are learned from."""
    signed: Sequence[str] = ()
    """Outputs whose sign is learned, too."""
    unnamed: str = ""
    """What a grade without a name is of; empty: of the first output."""
    speaks: bool = False
    """Whether a policy learns, whose prompts may hold media and whose rows may have grades of other names."""

    def prompts(self, records: Iterable[Record]) -> tuple[list[Prompt], Kept]:
        """In the records' order. What is too long or broken is treated as the settings say; ValueError if none is left."""
        bad, kept = BadRecords(self.config.tasks.on_bad_record), Kept()
        found: list[Record] = []
        for record in records:
            _check_kind(record)
            try:
                sides = self._sides(record)
            except (ValueError, TypeError, KeyError, AttributeError, TemplateError) as error:
                bad(str(error) if record.id in str(error) else f"{record.id}: {error}")
                continue
            if self._fits(sides, record.id, kept):
                kept.parted_early += any(len(one["messages"]) > 1 for one in record.target)
                found.append(replace(record, target=sides))
        kept.broken = bad.skipped
        if not found:
            raise ValueError(
                f"no comparison is left: {kept.too_long} have a response over max_tokens={self.config.max_tokens}, {kept.broken} are broken. "
                "Raise max_tokens, or mend the rows."
            )
        return prepare(found, self.processor, self.config.tasks)[0], kept

    def _sides(self, record: Record) -> list[Side]:
        """The responses in tokens. ValueError if nothing can be learned from them."""
        if not any(message["role"] == "user" for message in record.messages):
            raise ValueError("nobody asks anything before the responses.")
        apart = any_media(record.target)
        sides = []
        for place, one in enumerate(record.target):
            said, grades = one["messages"], self._grades(one["grades"])
            self._check_said(record.messages, said, place)
            if apart:
                own = own_prompt(self.processor, record, said, place)
                sides.append(Side(own.token_ids[-1:], grades, [True], own))
            else:
                tokens, mask = self._laid_out(record.messages, said, place)
                sides.append(Side(tokens, grades, mask))
        self._check_grades(sides)
        return sides

    def _check_said(self, asked: Sequence[Message], said: Sequence[Message], place: int) -> None:
        """ValueError for a response that nothing can be learned from."""
        if not said or said[0]["role"] != "assistant" or said[-1]["role"] != "assistant":
            raise ValueError(f"response {place} is none of the assistant to the prompt.")
        if has_media(said) and self.speaks:
            raise ValueError(f"response {place} holds media, and a policy writes text.")
        if not readable(said[-1]["content"]).strip():
            raise ValueError(f"response {place} is empty.")
        talk = [*asked, *said]
        if any(one["role"] == other["role"] == "assistant" for one, other in pairwise(talk)):
            raise ValueError(f"response {place}: the assistant speaks twice in a row.")

    def _laid_out(
        self, asked: Sequence[Message], said: Sequence[Message], place: int
    ) -> tuple[list[int], list[bool]]:
        """Tokens and mask of one response. ValueError for one that the chat template cannot lay out."""
        try:
            return self.layout(asked, said)
        except ValueError as error:
            raise ValueError(f"response {place}: {error}") from error

    def _grades(self, grades: Mapping[str, float]) -> dict[str, float]:
        named = {name or self.unnamed or self.outputs[0]: value for name, value in grades.items()}
        if self.speaks:
            named = {name: value for name, value in named.items() if name in self.outputs}
        for name, value in named.items():
            if name not in self.outputs:
                raise ValueError(
                    f"a response is graded for '{name}', which is none of outputs={list(self.outputs)}."
                )
            unknown = isinstance(value, float) and math.isnan(value)
            if not unknown and finite_number(value) is None:
                raise ValueError(f"the grade {value!r:.80} for '{name}' is no finite number.")
        return named

    def _check_grades(self, sides: Sequence[Side]) -> None:
        """ValueError if equal responses are graded differently, or no grade teaches anything."""
        for one, other in combinations(sides, 2):
            if _read_alike(one, other) and _differ(one, other):
                raise ValueError("two responses have the same tokens and different grades.")
        if not any(_known(sides, name) for name in self.outputs):
            named = (
                ""
                if self.outputs[0] in ("", self.unnamed) or not self.speaks
                else f" for output={self.outputs[0]}"
            )
            raise ValueError(f"no response has a grade{named}.")
        if not any(self.teaches(sides, name) for name in self.outputs):
            raise ValueError("no response is better than another, so there is nothing to compare.")

    def teaches(self, sides: Sequence[Side], output: str) -> bool:
        """Whether the grades of these responses to one prompt teach an output anything: by a difference where the loss compares, by a
        sign where that is learned, else by any grade."""
        grades = _known(sides, output)
        signed = output in self.signed and any(grades)
        return signed or len(set(grades)) > 1 or (bool(grades) and not self.compares)

    def _fits(self, sides: Sequence[Side], name: str, kept: Kept) -> bool:
        longest, most = max(len(side.token_ids) for side in sides), self.config.max_tokens
        if longest <= most:
            return True
        if self.config.on_long_response == "raise":
            raise ValueError(
                f"{name}: a response has {longest} tokens, max_tokens={most}. Raise that, or set on_long_response=skip."
            )
        kept.too_long += 1
        return False


def scored(processor: Processor, until: Callable[[Sequence[int]], Sequence[int]]) -> Layout:
    """The layout for a reward model: what the chat template adds to the prompt, up to the token at which the score is read, which
    `until` finds in a conversation (models/reward.py)."""

    def lay(asked: Sequence[Message], said: Sequence[Message]) -> tuple[list[int], list[bool]]:
        opened = processor.tokens(asked)
        closed = processor.tokens([*asked, *said], answer_next=False)
        if closed[: len(opened)] != list(opened):
            raise ValueError(
                "the chat template, or the tokenizer where the response begins, writes the prompt otherwise once it follows. Remove "
                "white space at its beginning, or set model.chat_template."
            )
        added = list(until(closed)[len(opened) :])
        if not added:
            raise ValueError("the chat template leaves it out.")
        return added, [False] * (len(added) - 1) + [True]

    return lay


def spoken(processor: Processor, ending: int) -> Layout:
    """The layout for a policy: what it would have written, the token `ending` included; turns of others in between are not learned."""

    def lay(asked: Sequence[Message], said: Sequence[Message]) -> tuple[list[int], list[bool]]:
        turns = [len(asked) + place for place, turn in enumerate(said) if turn["role"] == "assistant"]
        answer = answer_to(processor, [*asked, *said], turns, ending)
        return answer.token_ids, answer.mask

    return lay


def _check_kind(record: Record) -> None:
    """ValueError for a task that has no comparisons at all."""
    target = record.target
    if not isinstance(target, list) or not all(isinstance(t, Mapping) and "grades" in t for t in target):
        raise ValueError(
            f"{record.id}: task '{record.source}' has no graded responses to compare. Take tiny_pairs, or your own rows: --tasks.train file 1 "
            "--tasks.train-file pairs.jsonl, with tasks.format=lightrft.datasets.preferences:compared, ranked, graded, saferlhf or (lightrft dpo) unpaired there."
        )


def _known(sides: Iterable[Side], output: str) -> list[float]:
    """The grades for one output of those responses that have one."""
    found = (side.grades.get(output, math.nan) for side in sides)
    return [grade for grade in found if not math.isnan(grade)]


def _read_alike(one: Side, other: Side) -> bool:
    """Whether a model reads the same in both: the same tokens, and the same media."""
    if one.prompt is None or other.prompt is None:
        return one.token_ids == other.token_ids and bool(named(one.medium) == named(other.medium))
    return bool(read_of(one.prompt) == read_of(other.prompt))


def _differ(one: Side, other: Side) -> bool:
    """Whether some output grades both, and differently."""
    both = one.grades.keys() & other.grades.keys()
    return any(
        one.grades[name] < other.grades[name] or one.grades[name] > other.grades[name] for name in both
    )


def siblings(prompt: Prompt, group: int) -> list[Trajectory]:
    """A prompt of `Comparisons` as a group of trajectories."""
    sides: Sequence[Side] = prompt.target
    return [
        Trajectory(
            prompt=prompt if side.prompt is None else side.prompt,
            group=group,
            token_ids=side.token_ids,
            mask=side.mask,
            behavior=[0.0] * len(side.token_ids),
            finish="stop",
            parts=dict(side.grades),
        )
        for side in sides
    ]


def warn_of_shortcuts(
    prompts: Sequence[Prompt], outputs: Sequence[str], signed: Sequence[str], name: str
) -> None:
    """Says in the log what a model could learn instead of what is meant: lengths, or always the same sign."""
    for output in outputs:
        graded = [
            [
                (s.grades[output], len(s.token_ids))
                for s in p.target
                if not math.isnan(s.grades.get(output, math.nan))
            ]
            for p in prompts
        ]
        pairs = [
            (one, other) if one[0] > other[0] else (other, one)
            for group in graded
            for one, other in combinations(group, 2)
            if one[0] != other[0]
        ]
        for rule, wins in (
            ("longer", sum(w[1] > l_[1] for w, l_ in pairs)),
            ("shorter", sum(w[1] < l_[1] for w, l_ in pairs)),
        ):
            if wins > LOPSIDED * len(pairs):
                log.warning(
                    "%s, %s: the better response is the %s one in %d of %d pairs, so that a model may learn lengths",
                    name, output, rule, wins, len(pairs),
                )  # fmt: skip
        signs = [grade > 0 for group in graded for grade, _ in group if grade]
        if output in signed and signs and max(sum(signs), len(signs) - sum(signs)) > LOPSIDED * len(signs):
            log.warning("%s, %s: %d of %d grades are above 0", name, output, sum(signs), len(signs))


def warn_of_leaks(learned: Iterable[Asked], held_out: Sequence[Prompt], name: str) -> None:
    """Says in the log how many held-out prompts are learned from, too."""
    known = {key for prompt in learned for key in told_apart(prompt)}
    shared = sum(any(key in known for key in told_apart(prompt)) for prompt in held_out)
    if shared:
        log.warning(
            "%s: %d of %d held-out prompts are learned from, too; split by prompt",
            name,
            shared,
            len(held_out),
        )
