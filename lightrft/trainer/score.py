"""Scores responses before they are learned from: log-probs of all models that look at them, values, advantages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lightrft.algorithms.advantages import explained_variance
from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.constraint import advantages_under_a_cost
from lightrft.config import Config
from lightrft.config.rollout import OFF, OLD, SAMPLING
from lightrft.console.progress import Progress
from lightrft.models.experts import routers_of
from lightrft.models.kinds import Compute
from lightrft.models.values import values
from lightrft.models.words import training_logprobs
from lightrft.parallel.world import World
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.trainer.batching import Batching, pack, rows_of, unpack
from lightrft.trainer.division import divide
from lightrft.trainer.responses import share_with_forks, turn_rewards
from lightrft.trainer.routers import check_told, keep_experts
from lightrft.trainer.scaler import RewardScaler
from lightrft.types import Batch, Inputs, Trajectory
from lightrft.utils.interrupt import Interrupt

Take = Callable[[Sequence[Trajectory], Batch, Tensor], None]


@dataclass
class Scorer:
    """Fills the columns of responses: log-probs of whoever is asked for, values, then rewards, advantages and returns."""

    config: Config
    world: World
    memory_plan: MemoryPlan
    progress: Progress
    batching: Batching
    actor: Trainable
    critic: Trainable | None
    reference: Frozen | None
    teacher: Frozen | None
    scaler: RewardScaler
    interrupt: Interrupt
    needs_old: bool
    """Whether the log-probs at sampling must be computed by themselves, see trainer/rollout.py."""
    needs_squares: bool = False
    """Whether the advantage reads Batch.squares."""
    logprobs: Compute = training_logprobs
    """What a model says of a batch, as the policy's kind has it (models/kinds.py)."""
    filled: list[str] = field(default_factory=list, init=False)
    """The columns that models gave in this step."""

    @torch.no_grad()
    def score(
        self, trajectories: Sequence[Trajectory], algorithm: Algorithm, waiting: Sequence[Trajectory] = ()
    ) -> dict[str, float]:
        """Fills the columns of `trajectories`; `waiting` ones get the log-probs that they have now, if any do. By all ranks."""
        self.progress.phase("score")
        told = rows_of([*trajectories, *waiting])
        if self.config.rollout.routing_replay == SAMPLING:
            with self.world.independent():
                check_told(told, self.config.rollout.engine)
        elif self.config.rollout.routing_replay == OFF:  # those of a run that did, before a resume
            for t in told:
                t.experts = None
        with self.memory_plan(Phase.SCORE):
            self.filled = self._by_models(rows_of(trajectories), rows_of(waiting))
            return self.compare(trajectories, algorithm)

    @torch.no_grad()
    def compare(self, trajectories: Sequence[Trajectory], algorithm: Algorithm) -> dict[str, float]:
        """Rewards, advantages and returns of responses whose other columns are there, compared among themselves. By all ranks."""
        whole = pack(trajectories, inputs=False)
        for name in self.filled if not trajectories else ():  # all responses of this rank were dropped
            setattr(whole, name, torch.zeros(0))
        if algorithm.needs_baseline:
            whole.baselines = self.scaler.baselines(trajectories)
        if algorithm.needs_parts:
            whole.grades, whole.part_weights = self.scaler.parts(trajectories)
        if algorithm.needs_turns:
            whole.turn_rewards = turn_rewards(trajectories)
        found = self._advantages(whole, trajectories, algorithm)
        for name in ("rewards", "advantages", "returns", "cost_returns"):
            if (column := getattr(whole, name)) is not None:
                unpack(column, trajectories, name)
        share_with_forks(trajectories)
        return found

    def _advantages(
        self, whole: Batch, trajectories: Sequence[Trajectory], algorithm: Algorithm
    ) -> dict[str, float]:
        """Fills rewards, advantages and returns of a batch; how well the critic had known them."""
        if self.critic is None:
            # Replayed responses may have its values still, from before a resume without one.
            whole.values = whole.cost_values = None
        elif self.scaler.cost:
            scores, costs = self.scaler.apart(trajectories)
            multiplier = self.scaler.multiplier
            return advantages_under_a_cost(whole, scores, costs, multiplier, algorithm, self.world.sum)
        whole.scores = self.scaler.transform(trajectories)
        algorithm.compute_advantages(whole, self.world.sum)
        if whole.values is None:
            return {}
        assert whole.returns is not None
        explained = explained_variance(whole.values, whole.returns, whole.mask, self.world.sum)
        return {"critic/explained_variance": explained}

    def _by_models(self, trajectories: Sequence[Trajectory], waiting: Sequence[Trajectory]) -> list[str]:
        """Fills the columns that models give; their names."""
        filled: list[str] = []
        # Once a response of earlier weights is among them, none may do without: a column is for all responses or for none. A resume
        # may have brought such responses whatever the settings are now.
        older = any(t.stale or "old" in t.columns for t in trajectories)
        if self.needs_old or not self.world.all(not older):
            filled += list(self._sampling_columns)
            # What waits is learned from after the weights have moved, so its log-probs are taken now.
            self.fill_old([t for t in [*trajectories, *waiting] if "old" not in t.columns])
        for name, model in (("ref", self.reference), ("teacher", self.teacher)):
            if model is not None:
                take = _keep_means if name == "ref" else None
                self.fill(trajectories, partial(self._seen_by, model), name, take=take)
                filled.append(name)
        if self.critic is not None:
            columns = ("values", "cost_values") if self.scaler.cost else ("values",)
            self.fill(trajectories, partial(self._valued_by, self.critic), *columns)
            filled += columns
        return filled

    def fill_old(self, answers: Sequence[Trajectory]) -> None:
        """Columns old and entropy: under the actor's present weights, but of older tokens as the weights then sampled them."""
        self.fill(answers, self._sampled_at, *self._sampling_columns, take=self._keep_experts)
        for t in answers:
            sampled_at = torch.tensor(t.behavior[: t.stale])
            if self.needs_squares and t.stale:
                # 1 - 2 p + sum p^2 is read from both columns, and has to stay that of the present weights.
                t.columns["squares"][: t.stale] += 2 * (sampled_at.exp() - t.columns["old"][: t.stale].exp())
            t.columns["old"][: t.stale] = sampled_at

    def fill(
        self,
        answers: Sequence[Trajectory],
        compute: Callable[[Batch], tuple[Tensor, ...]],
        *names: str,
        take: Take | None = None,
    ) -> None:
        """Gives each response the columns `names`, which `compute` finds for a packed batch; called by all ranks."""
        fill(answers, compute, *names, batching=self.batching, interrupt=self.interrupt, take=take)

    @property
    def _sampling_columns(self) -> tuple[str, ...]:
        return ("old", "entropy", "squares") if self.needs_squares else ("old", "entropy")

    def _sampled_at(self, batch: Batch) -> tuple[Tensor, ...]:
        found = self.actor.compute(self.logprobs, batch, self.config)
        columns = [found.values, found.entropy]
        if self.needs_squares:
            assert found.squares is not None, "refused for models that do not tell it"
            columns.append(found.squares)
        if self.config.rollout.routing_replay == OLD and found.experts is not None:
            columns.append(found.experts)
        return tuple(columns)

    def _keep_experts(self, part: Sequence[Trajectory], batch: Batch, experts: Tensor) -> None:
        routers = routers_of(self.actor.module)
        assert routers is not None
        keep_experts(part, batch, experts, routers.compact)

    def _seen_by(self, model: Frozen, batch: Batch) -> tuple[Tensor, ...]:
        if isinstance(batch.inputs, Inputs) and batch.inputs.experts is not None:
            # Experts are replayed for the policy, whose ratio they are to keep. Other models choose their own.
            batch.inputs = replace(batch.inputs, experts=None)
        found = model.compute(self.logprobs, batch, self.config)
        return (found.values,) if found.means is None else (found.values, found.means)

    def _valued_by(self, critic: Trainable, batch: Batch) -> tuple[Tensor, ...]:
        return critic.compute(values, batch, self.config.model.attention == "separate")


def fill(
    answers: Sequence[Trajectory],
    compute: Callable[[Batch], tuple[Tensor, ...]],
    *names: str,
    batching: Batching,
    interrupt: Interrupt,
    take: Take | None = None,
) -> None:
    """Gives each response the columns `names`, which `compute` finds for a packed batch; called by all ranks.

    With `take` it may find one tensor more, which that is given with the responses and their batch.
    """
    for t in (t for t in answers if not len(t)):  # in no batch
        t.columns |= {name: torch.zeros(0) for name in names}
    divided = divide(answers, batching.config.tokens_per_micro_batch)
    for part, batch, counts in batching.rounds(divided.pieces):
        found = compute(batch)
        for name, column in zip(names, found, strict=take is None):
            if counts:
                unpack(column, part, name)
        if counts and take is not None and len(found) > len(names):
            take(part, batch, found[-1])
        # Several stop together or not at all, and not in the middle of a sharded model.
        if batching.world.size == 1:
            interrupt.raise_if_stopped()
    divided.join()


def _keep_means(part: Sequence[Trajectory], _batch: Batch, means: Tensor) -> None:
    """Each response keeps its part of (T, ...) as `reference`."""
    for t, own in zip(part, means.cpu().split([len(t) for t in part]), strict=True):
        t.reference = own
