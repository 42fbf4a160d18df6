"""Held-out evaluation: sample, judge by the task's own reward, estimate, and save every response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from lightrft.config import EvaluateConfig
from lightrft.engines.base import Engine
from lightrft.media.parts import has_media
from lightrft.models.processor import Processor
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner
from lightrft.runs.layout import EvaluationFolder
from lightrft.runs.media import MediaCopies
from lightrft.runs.sheets import write_sheet
from lightrft.runs.trajectories import conversation
from lightrft.tasks.base import Task, extractor
from lightrft.trainer.diversity import spread_of
from lightrft.trainer.estimates import (
    Estimate,
    Vote,
    majority_at_k,
    mean_estimate,
    pass_at_k,
    weighted_estimate,
)
from lightrft.trainer.rollout import rollout
from lightrft.trainer.turns import Turns
from lightrft.types import Prompt, Sampling, Trajectory
from lightrft.utils.answers import vote
from lightrft.utils.seeding import derive_seed

RIGHT = "\0right"
"""The vote of all responses that were judged right."""
OPEN_AT_ONCE = 32
"""Prompts whose media are in memory at the same time."""
FULL_MARKS = 1.0 - 1e-6
"""A response is right if every reward that has a positive weight gives it at least this."""


@dataclass(frozen=True)
class EvalSet:
    """The held-out prompts of one task."""

    task: Task
    prompts: Sequence[Prompt]
    weight: float


@dataclass
class Evaluator:
    """Evaluates on the held-out prompts, always the same and with the same seeds; untouched by training's random numbers."""

    eval_sets: Sequence[EvalSet]
    rewards: RewardRunner
    """Built from the tasks' own rewards, not from the training rewards."""
    processor: Processor
    config: EvaluateConfig
    max_tokens: int
    """Most tokens of a response; 0: what each task says that its responses need."""
    stop: tuple[str, ...]
    seed: int
    folder: Path
    world: World
    turns: Turns | None = None
    """What replies to the policy, where anything does."""
    open: Callable[[Prompt], Prompt | None] = lambda prompt: prompt
    """Reads the media of a prompt; None for one that cannot be used, which is then left out and counted in the log."""
    media: MediaCopies = field(default_factory=lambda: MediaCopies(Path(), 0))
    """What keeps copies of the media of prompts; by default their bare names alone are written."""

    def __post_init__(self) -> None:
        # One conversation that fails is left out, and what training counts is not mixed with what happens here.
        self.turns = self.turns and self.turns.apart("drop")

    def sample(
        self, engine: Engine, *, progress: Callable[[int, int], None] | None = None
    ) -> list[list[Trajectory]]:
        """Responses to this rank's share of the prompts of all evaluation sets, one group per prompt.

        Prompts with media are sampled a few at a time and forget them afterwards. Consecutive sets whose responses may be equally
        long are asked in one call.
        """
        total = len(range(self.world.rank, sum(len(s.prompts) for s in self.eval_sets), self.world.size))
        groups: list[list[Trajectory]] = []
        before = 0
        for max_tokens, sets in groupby(self.eval_sets, lambda s: self.max_tokens or s.task.max_tokens):
            prompts = [p for eval_set in sets for p in eval_set.prompts]
            # The prompts of all sets are shared out by their place among all of them, which also seeds their responses.
            skipped = (self.world.rank - before) % self.world.size
            mine = prompts[skipped :: self.world.size]
            size = OPEN_AT_ONCE if any(has_media(p.messages) for p in mine) else max(1, len(mine))
            for start in range(0, max(1, len(mine)), size):  # an engine of several ranks wants a call of each
                part = self._sampling(max_tokens, before + skipped + start * self.world.size)
                told = _shifted(progress, len(groups) * part.n, total * part.n)
                groups += self._asked(engine, mine[start : start + size], part, told)
            before += len(prompts)
        return groups

    def _sampling(self, max_tokens: int, first_index: int) -> Sampling:
        """How prompts are sampled of which the first has this place among those of all sets."""
        return Sampling(
            n=self.config.samples,
            max_tokens=max_tokens,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
            stop=self.stop,
            seed=derive_seed(self.seed, "evaluate", 0),
            first_index=first_index,
            index_stride=self.world.size,
        )

    def _asked(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        progress: Callable[[int, int], None] | None,
    ) -> list[list[Trajectory]]:
        """The responses to some prompts, whose media are read for this call only."""
        pairs = [(p, o) for p in prompts if (o := self.open(p)) is not None]
        asked = rollout(
            engine,
            [opened for _, opened in pairs],
            sampling,
            self.processor,
            turns=self.turns,
            progress=progress,
        )
        for (prompt, opened), group in zip(pairs, asked, strict=True):
            for t in group if opened is not prompt else ():
                t.prompt = prompt if t.prompt is opened else replace(t.prompt, media={})
        return asked

    def report(self, groups: list[list[Trajectory]], label: str) -> dict[str, float]:
        """Score by task of judged responses, and their weighted mean; writes `label`.jsonl (every response) and `label`.json (all
        estimates)."""
        mine = [self._row(t) for group in groups for t in group]
        rows = [row for rank in self.world.gather(mine) for row in rank]
        report = {eval_set.task.name: self._estimates(eval_set, rows) for eval_set in self.eval_sets}
        if self.world.is_first:
            kept = EvaluationFolder(self.folder)
            made = write_sheet([row.pop("made") for row in rows], kept.pictures(label))
            kept.write(
                label, report, [row | ({"made": m} if m else {}) for row, m in zip(rows, made, strict=True)]
            )
        scores = {name: float(estimates["score"]["mean"]) for name, estimates in report.items()}
        total = sum(eval_set.weight for eval_set in self.eval_sets)
        mean = sum(scores[eval_set.task.name] * eval_set.weight for eval_set in self.eval_sets) / total
        return {**scores, "mean": mean}

    def _estimates(self, eval_set: EvalSet, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Every estimate of one evaluation set, with 95 % confidence intervals over prompts."""
        by_question: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["source"] == eval_set.task.name and row["reward"] is not None:
                by_question.setdefault(row["id"], []).append(row)
        groups = list(by_question.values())
        counts = [(len(g), sum(row["correct"] for row in g)) for g in groups]
        rewards = [sum(row["reward"] for row in g) / len(g) for g in groups]
        estimates: dict[str, Estimate] = {"score": mean_estimate(rewards)}
        for k in self.config.pass_k:
            estimates[f"pass@{k}"] = pass_at_k([c for c in counts if c[0] >= k], k)
        for k in self.config.majority_k:
            extract = eval_set.task.extract or extractor(self.rewards.weights.get(eval_set.task.name, {}))
            votes = [_votes(g, extract) for g in groups if len(g) >= k]
            estimates[f"maj@{k}"] = majority_at_k(votes, k)
        for name, measure in eval_set.task.measures.items():
            if (label := self.rewards.labels.get(measure.reward, "")) and all(
                label in row["parts"] for g in groups for row in g
            ):
                parts = [sum(row["parts"][label] for row in g) / len(g) for g in groups]
                estimates[name] = weighted_estimate(parts, [measure.weight(g[0]["target"]) for g in groups])
        spread = [found for g in groups if (found := spread_of([row["made"] for row in g])) is not None]
        if spread:
            estimates["diversity"] = mean_estimate(spread)
        judged = sum(len(g) for g in groups)
        asked = sum(row["source"] == eval_set.task.name for row in rows)
        cut = sum(row["finish"] == "length" for g in groups for row in g)
        length = sum(row["length"] for g in groups for row in g)
        return {
            **{name: {"mean": e.mean, "low": e.low, "high": e.high} for name, e in estimates.items()},
            "questions": len(groups),
            "responses": judged,
            "failed_rewards": asked - judged,
            "truncated_fraction": cut / max(judged, 1),
            "mean_length": length / max(judged, 1),
        }

    def _row(self, t: Trajectory) -> dict[str, Any]:
        failed = (
            t.reward != t.reward
        )  # NaN: its reward raised, hung or was no number; such a response is not counted
        return {
            "id": t.prompt.id,
            "source": t.prompt.source,
            "messages": self.media.kept(t.prompt.messages),
            "target": t.prompt.target,
            "response": t.answer,
            "finish": t.finish,
            "length": t.num_chosen,
            **conversation(t),
            "reward": None if failed else t.reward,
            "parts": t.parts,
            "correct": not failed and self._right(t),
            "made": dict(t.made),
        }

    def _right(self, t: Trajectory) -> bool:
        """Whether all that is rewarded has full marks; what a negative weight takes off makes no response wrong."""
        weights = self.rewards.weights.get(t.prompt.source, {})
        labels = [self.rewards.labels[name] for name, weight in weights.items() if weight > 0]
        if not labels:
            return t.reward >= FULL_MARKS
        return all(t.parts[label] >= FULL_MARKS for label in labels)


def _shifted(
    progress: Callable[[int, int], None] | None, before: int, total: int
) -> Callable[[int, int], None] | None:
    """Tells the progress of one part as that of the whole."""
    return None if progress is None else lambda finished, _: progress(before + finished, total)


def _votes(rows: Sequence[dict[str, Any]], extract: Callable[[str], str]) -> list[Vote]:
    """What each response votes for; one that concludes nothing has no vote.

    Of mathematics, responses of one wording with one that was judged right are the same vote: what equals the target in
    two ways of writing agrees.
    """
    found = [(extract(row["response"]) or None, bool(row["correct"])) for row in rows]
    if extract is not vote:
        return list(found)
    right = {said for said, correct in found if correct}
    return [(RIGHT if said in right and said is not None else said, correct) for said, correct in found]
