"""Judged groups worth learning from: asked for again until a step has enough of them (dynamic sampling)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.selection import mixed_outcomes
from lightrft.config import Config
from lightrft.datasets.loader import PromptLoader
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardResult
from lightrft.trainer.baseline import Baseline, has_baseline
from lightrft.trainer.batching import by_group, rows_of
from lightrft.trainer.buffer import RolloutBuffer
from lightrft.trainer.flight import Group
from lightrft.trainer.length import penalise_length
from lightrft.trainer.metrics import average, describe
from lightrft.trainer.scaler import RewardScaler
from lightrft.trainer.supply import Supply
from lightrft.types import Trajectory, Use

Metrics = dict[str, float]


@dataclass
class Drawn:
    """Everything that a step has sampled so far, on this rank."""

    groups: list[Group] = field(default_factory=list)
    """All that have rewards, whether or not they are learned from."""
    counts: Metrics = field(default_factory=dict)
    """Metrics of judging them, counts/..."""
    left_out: int = 0
    """Groups with rewards that are not learned from."""
    unused: list[Trajectory] = field(default_factory=list)
    """Responses that this step does not learn from, each with the reason in `use`."""
    attempts: int = 0
    """How often new prompts were sampled from."""

    def leave_out(self, use: Use, groups: Sequence[Group]) -> None:
        """Notes that the step does not learn from these groups, and what becomes of them."""
        for t in (t for group in groups for t in group):
            t.use = use
            self.unused.append(t)


@dataclass
class Collector:
    """Samples, judges and chooses the groups of a step. Every rank collects its share; all of them go on until each has enough."""

    config: Config
    world: World
    algorithm: Algorithm
    """For its choice of groups."""
    supply: Supply
    buffer: RolloutBuffer
    scaler: RewardScaler
    prompts: PromptLoader | None = None
    """With rollout.rest_passes or rollout.priority_floor: what is told which prompts say nothing at present, and which were solved."""
    baseline: Baseline | None = None
    """Finds the responses to compare with besides the siblings, where the algorithm asks for it."""
    unused: list[Trajectory] = field(default_factory=list, init=False)
    """Responses of the last step that it did not learn from, each with the reason in `use`."""

    @property
    def share(self) -> int:
        """Prompts of a step on this rank."""
        return self.config.rollout.prompts_per_step // self.world.size

    def collect(self, step: int) -> tuple[list[Group], Metrics]:
        """Judged groups worth learning from, `prompts_per_step / world.size` on this rank, and what is known of all drawn.

        With `algorithm.group_filter` other than all, prompts are sampled again until there are enough groups, at most
        `rollout.max_sampling_rounds` times; surplus groups wait for the next step if that is set. With
        `rollout.max_tokens_per_step` there are as many as have been answered to the end, at least one, a step's worth on average.
        Where a reward failed there are fewer, and the step is a little smaller.
        """
        kept, drawn = self.buffer.take_carried_over(), Drawn()
        while (asks := self._asks(drawn.attempts)) or self._must_wait(kept):
            drawn.attempts += asks
            judged = self.supply.draw(step, drawn.attempts, self.share if asks else 0)
            kept += self._worthy(judged, drawn)
            if self.world.all(len(kept) >= self.share):
                break
        self.supply.collected(step, self.share)
        drawn.counts = self.world.sum_by_name(drawn.counts | self.supply.counted())
        self._need_some(step, kept, drawn)
        metrics = describe(drawn.groups, self.world) | drawn.counts | self._of_rollout(drawn.groups)
        metrics["rollout/sampling_rounds"] = float(drawn.attempts)
        if self.prompts is not None and self.config.rollout.rest_passes:
            metrics["rollout/prompts_resting"] = float(self.prompts.left_out)
        if self.prompts is not None and self.config.rollout.priority_floor < 1:
            metrics["rollout/priority"] = self.prompts.mean_priority
        kept, surplus = self._divided(step, kept, drawn)
        if self.config.rollout.extra_groups == "carry_over":
            self.buffer.carried_over = surplus
            metrics["rollout/groups_carried_over"] = self._sum(len(surplus))
        metrics["rollout/groups_filtered_out"] = self._sum(drawn.left_out)
        metrics |= self.scaler.update([t for group in drawn.groups for t in group])
        self.unused = drawn.unused
        if self.algorithm.config.truncated == "mask":
            for row in rows_of([t for group in [*kept, *surplus] for t in group if t.finish == "length"]):
                row.mask = [False] * len(row)
        return kept, metrics

    def _asks(self, attempts: int) -> bool:
        """Whether new prompts may be used: once, and again only if some groups are not worth learning from."""
        if attempts == 0:
            return True
        return not self.algorithm.keeps_all_groups and attempts < self.config.rollout.max_sampling_rounds

    def _must_wait(self, kept: Sequence[Group]) -> bool:
        """Whether no rank has a group, but some have responses that are not at their end: a step needs at least one."""
        return not self.world.max(len(kept)) and bool(self.world.max(len(self.buffer.unfinished)))

    def _worthy(self, judged: RewardResult, drawn: Drawn) -> list[Group]:
        """The groups worth learning from, with the penalty on their length; all of them are added to `drawn`."""
        counts = {name: x for name, x in judged.metrics.items() if name.startswith("counts/")}
        drawn.counts = average([drawn.counts, counts])
        groups = by_group(judged.kept)
        drawn.groups += groups
        self._let_rest(groups)
        self._prefer(groups)
        worthy: list[Group] = []
        others: list[Group] = []
        for group in groups:
            weights = self.scaler.weights.get(group[0].prompt.source, {})
            (worthy if self.algorithm.learns_from(group, weights) else others).append(group)
        drawn.left_out += len(others)
        drawn.leave_out("failed", [judged.dropped])
        drawn.leave_out("filtered_out", others)
        # Groups are chosen by what was right, so before the penalty.
        penalise_length(
            (t for group in groups for t in group), self.algorithm.config, self.config.rollout.max_tokens
        )
        return worthy

    def _let_rest(self, groups: Sequence[Group]) -> None:
        """Leaves prompts out for some passes whose responses all got the same reward: solved, or hopeless. Called by all ranks."""
        if self.prompts is None or not self.config.rollout.rest_passes:
            return
        equal = [
            (group[0].prompt.source, group[0].prompt.id)
            for group in groups
            if len(group) > 1 and not mixed_outcomes(group)
        ]
        for names in self.world.gather(equal):
            self.prompts.rest(names, self.config.rollout.rest_passes)

    def _prefer(self, groups: Sequence[Group]) -> None:
        """Lets prompts be drawn the less often the better their responses were. Called by all ranks."""
        if self.prompts is None or self.config.rollout.priority_floor == 1:
            return
        solved = [
            (
                (group[0].prompt.source, group[0].prompt.id),
                group[0].group,
                fmean(min(1.0, max(0.0, t.reward)) for t in group),
            )
            for group in groups
        ]
        for judged in self.world.gather(solved):
            self.prompts.prefer(judged)

    def _need_some(self, step: int, kept: Sequence[Group], drawn: Drawn) -> None:
        """RuntimeError if no rank has a group to learn from."""
        if self.world.max(len(kept)):
            return
        config = self.config.rollout
        raise RuntimeError(
            f"step {step}: no group of responses is left to learn from after {drawn.attempts} sampling rounds of {self.share} prompts "
            f"(algorithm.group_filter={self.algorithm.config.group_filter}, rollout.max_sampling_rounds={config.max_sampling_rounds}, "
            f"{int(drawn.counts.get('counts/dropped_responses', 0))} responses dropped by failing rewards"
            f"{f', rollout.max_tokens_per_step={config.max_tokens_per_step}' * bool(config.max_tokens_per_step)}). "
            "Raise rollout.max_sampling_rounds or rollout.group_size, take easier or harder prompts, or set algorithm.group_filter=all."
        )

    def _divided(self, step: int, kept: list[Group], drawn: Drawn) -> tuple[list[Group], list[Group]]:
        """The groups of this step and those that wait for the next one, each with its baseline if there is one."""
        before = len(kept)
        carries = self.config.rollout.extra_groups == "carry_over"
        most = before if self.algorithm.keeps_all_groups else self.share
        # No more wait than the next step needs, so that none is older than one step.
        last = most + self.share if carries else most
        drawn.leave_out("extra", kept[last:])
        kept, surplus = kept[:most], kept[most:last]
        if self.baseline is not None:
            self.baseline(step, [*kept, *surplus])
            drawn.leave_out("failed", [g for g in [*kept, *surplus] if not has_baseline(g)])
            kept, surplus = ([g for g in groups if has_baseline(g)] for groups in (kept, surplus))
        drawn.leave_out("waiting", surplus)
        drawn.left_out += before - len(kept) - len(surplus)
        return kept, surplus

    def _of_rollout(self, groups: Sequence[Group]) -> Metrics:
        """How fast responses were sampled in this step, and by which weights those were that are judged now."""
        answers = [t for group in groups for t in group]
        tokens, seconds = self.supply.spent()
        seconds = max(self.world.max(seconds), 1e-9)
        behind = sum(self.supply.weight_version - t.weight_version for t in answers)
        sums = [tokens, sum(map(len, answers)), sum(t.stale for t in answers), behind, len(answers)]
        fresh, judged, stale, behind, count = self.world.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
        oldest = min((float(t.weight_version) for t in answers), default=float(self.supply.weight_version))
        metrics = {
            "rollout/tokens_per_second": fresh / seconds,
            "rollout/tokens_per_second_per_device": fresh / seconds / self.world.size,
            "rollout/oldest_weight_version": -self.world.max(-oldest),
        }
        unfinished = self._sum(len(self.buffer.unfinished))
        # A resume may have brought such responses whatever the settings are now.
        if self.config.rollout.is_late or stale or unfinished:
            metrics["rollout/staleness"] = behind / max(count, 1.0)
            metrics["rollout/off_policy_fraction"] = stale / max(judged, 1.0)
            metrics["rollout/groups_unfinished"] = unfinished
        return metrics

    def _sum(self, number: int) -> float:
        """Over all ranks."""
        return float(self.world.sum(torch.tensor(number)))
