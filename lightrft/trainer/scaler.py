"""From rewards as judged to the scores that are learned from: normalised and scaled by task, less the cost of a constraint."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from lightrft.algorithms.constraint import dual_ascent, lagrangian_reward
from lightrft.algorithms.shaping import RunningMoments
from lightrft.config import ConstraintConfig, RewardConfig
from lightrft.parallel.world import World
from lightrft.types import Trajectory

log = logging.getLogger("lightrft")


class RewardScaler:
    """Sees every judged response of training once, and knows what a reward is worth now. Evaluation never passes here."""

    def __init__(
        self,
        tasks: Sequence[str],
        rewards: RewardConfig,
        constraint: ConstraintConfig,
        cost: str,
        world: World,
        weights: Mapping[str, Mapping[str, float]] | None = None,
        places: Mapping[str, str] | None = None,
    ) -> None:
        """`cost`: name of the constraint's part in Trajectory.parts; empty without a constraint. `weights`: task -> part -> its weight in
        the reward. `places`: part -> the model that gives it, or its name elsewhere, of those that no function gives."""
        self.weights, self.places = weights or {}, places or {}
        self.rewards, self.constraint, self.cost, self.world = rewards, constraint, cost, world
        self.moments = {task: RunningMoments() for task in sorted(tasks)}  # every rank in the same order
        self.multiplier = constraint.multiplier

    def update(self, answers: Sequence[Trajectory]) -> dict[str, float]:
        """Takes the judged responses of a step, all ranks, into account; returns what is worth logging."""
        if self.rewards.normalise != "none":
            for task, moments in self.moments.items():
                rewards = [t.reward for t in answers if t.prompt.source == task]
                moments.see(torch.tensor(rewards, dtype=torch.float64), self.world.sum)
        if not self.cost:
            return {}
        costs = self._costs([t.parts for t in answers])
        total, count = self.world.sum(torch.stack([costs.sum(), torch.ones_like(costs).sum()])).tolist()
        if count:
            c = self.constraint
            self.multiplier = dual_ascent(
                self.multiplier, total / count, c.limit, c.learning_rate, c.max_multiplier
            )
        return {"constraint/multiplier": self.multiplier}

    def transform(self, answers: Sequence[Trajectory]) -> Tensor:
        """The score of each response, (S,) float32."""
        return self._scores(answers, [t.reward for t in answers], [t.parts for t in answers])

    def apart(self, answers: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
        """The score of each response without its cost, and its cost, both (S,) float32, where there is a constraint."""
        scores, costs = (
            self._scaled(answers, [t.reward for t in answers]),
            self._costs([t.parts for t in answers]),
        )
        return scores.float(), costs.float()

    def parts(self, answers: Sequence[Trajectory]) -> tuple[Tensor, Tensor]:
        """The parts of each response's reward and their weights, both (S, K) float32; NaN and 0 where its task has no such part."""
        names = sorted({name for weights in self.weights.values() for name in weights})
        found = [[t.parts.get(name, math.nan) for name in names] for t in answers]
        weights = [[self.weights[t.prompt.source].get(name, 0.0) for name in names] for t in answers]
        shape = (len(answers), len(names))
        return torch.tensor(found).view(shape), torch.tensor(weights).view(shape)

    def baselines(self, answers: Sequence[Trajectory]) -> Tensor:
        """The score of what each response is compared with, (S,) float32; NaN where none is known."""
        return self._scores(answers, [t.baseline for t in answers], [t.baseline_parts for t in answers])

    def _scores(
        self, answers: Sequence[Trajectory], rewards: list[float], parts: list[dict[str, float]]
    ) -> Tensor:
        scores = self._scaled(answers, rewards)
        if self.cost:
            scores = lagrangian_reward(scores, self._costs(parts), self.multiplier)
        return scores.float()

    def _costs(self, parts: Sequence[Mapping[str, float]]) -> Tensor:
        """The cost among the parts of each reward, (S,) float64."""
        return torch.tensor([part[self.cost] for part in parts], dtype=torch.float64)

    def _scaled(self, answers: Sequence[Trajectory], rewards: list[float]) -> Tensor:
        """Rewards as the settings scale them by task, (S,) float64."""
        scores = torch.tensor(rewards, dtype=torch.float64)
        sources = [t.prompt.source for t in answers]
        if self.rewards.normalise != "none":
            for task, moments in self.moments.items():
                here = torch.tensor([source == task for source in sources], dtype=torch.bool)
                shift = self.rewards.normalise == "shift_and_scale"
                scores[here] = moments.normalise(scores[here], shift=shift)
        scores *= torch.tensor([self.rewards.scale.get(source, 1.0) for source in sources])
        return scores

    def state(self) -> dict[str, Any]:
        """Everything it has learned, for the checkpoint."""
        return {
            "moments": {task: asdict(moments) for task, moments in self.moments.items()},
            "multiplier": self.multiplier,
            "cost": self.cost,
            "constraint.cost": self.constraint.cost,
            "given": {task: self._given(task) for task in self.moments},
            "cost_by": self.places.get(self.cost, ""),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back, but not what was measured of rewards that are others now: another model has another scale."""
        given, saved = state.get("given", {}), state["moments"]
        for task in [task for task in self.moments if task in saved]:  # not of those that were left out since
            if given.get(task, self._given(task)) == self._given(task):
                self.moments[task] = RunningMoments(**saved[task])
            elif self.rewards.normalise != "none":
                log.warning(
                    "the rewards of task %s are others than before the resume: their mean and deviation are measured anew",
                    task,
                )
        if state["cost"] != self.cost:  # a constraint that was added since begins with its own
            return
        if state.get("cost_by", place := self.places.get(self.cost, "")) == place:
            self.multiplier = state["multiplier"]
        else:
            log.warning(
                "constraint.cost=%s is given by %s since the resume: its multiplier begins at constraint.multiplier=%g again",
                self.cost, place or "a function", self.multiplier,
            )  # fmt: skip

    def _given(self, task: str) -> list[list[str | float]]:
        """What makes the reward of a task: each part, its weight, and who gives it."""
        parts = sorted(self.weights.get(task, {}).items())
        return [[name, weight, self.places.get(name, "")] for name, weight in parts if weight]
