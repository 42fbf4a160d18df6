"""The optimal value of each training prompt, measured before the first step with the policy that the run begins with (A*-PO)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lightrft.algorithms.optimal_values import value_of
from lightrft.algorithms.shaping import clip_scores
from lightrft.config import Config
from lightrft.console.progress import Progress
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Asked
from lightrft.models.processor import Processor
from lightrft.rewards.base import RewardRunner
from lightrft.trainer.flight import Group
from lightrft.trainer.rollout import rollout, training_sampling
from lightrft.trainer.sampler import Sampler
from lightrft.trainer.turns import Turns
from lightrft.types import Trajectory
from lightrft.utils.seeding import derive_seed


@dataclass
class OptimalValues:
    """What responses are compared with: a `Baseline`, and a Part of checkpoints.

    Rewards are kept, so that a run may go on with another algorithm.value_beta. A prompt none of whose responses could be judged has no
    value, and is not learned from.
    """

    config: Config
    sampler: Sampler
    judge: RewardRunner
    processor: Processor
    prompts: PromptLoader
    progress: Progress
    turns: Turns | None = None
    """What replies to the policy, where anything does."""
    rewards: dict[str, dict[str, list[float]]] = field(default_factory=dict, init=False)
    """Source -> id of a prompt -> rewards of the responses to it."""
    asked: list[int] = field(default_factory=lambda: [0], init=False)
    """How many prompts have been gone through, all ranks together; one number."""

    def prepare(self) -> None:
        """Asks what has not been asked yet, a step's worth of prompts at a time; called by all ranks, before any update."""
        if self.asked[0] == sum(map(len, self.prompts.sources)):
            return
        everything = [prompt for source in self.prompts.sources for prompt in source]
        assert self.sampler.policy.version == 0, "a run that has learned is refused, see build/assemble.py"
        self.progress.phase("values")
        while self.asked[0] < len(everything):
            start = self.asked[0]
            some = everything[start : start + self.config.rollout.prompts_per_step]
            for found in self.sampler.world.gather(self._measured(start, some)):
                for source, name, reward in found:
                    self.rewards.setdefault(source, {}).setdefault(name, []).append(reward)
            self.asked[0] += len(some)
        self._tell(len(everything))

    def _measured(self, start: int, some: Sequence[Asked]) -> list[tuple[str, str, float]]:
        """Source, prompt and reward of each response of this rank to its part of `some`, whose first has the place `start`."""
        world, row = self.sampler.world, self.config.algorithm
        sampling = training_sampling(self.config.rollout, derive_seed(self.config.seed, "values", 0), world)
        sampling = replace(sampling, n=row.value_samples, first_index=start + world.rank)
        opened = [p for one in some[world.rank :: world.size] if (p := self.prompts.open(one)) is not None]

        def draw() -> list[list[Trajectory]]:
            told = self.sampler.progress
            engine = self.sampler.engine
            return rollout(engine, opened, sampling, self.processor, turns=self.turns, progress=told)

        answers = [t for group in self.sampler(draw) for t in group]
        judged = self.sampler.judged(self.judge, answers).kept
        return [(t.prompt.source, t.prompt.id, t.reward) for t in judged]

    def _tell(self, asked: int) -> None:
        """The result, for people."""
        found = [self.value(source, name) for source, known in self.rewards.items() for name in known]
        mean = math.fsum(found) / max(1, len(found))
        best = sum(max(rewards) <= 0 for known in self.rewards.values() for rewards in known.values())
        self.progress.note(
            f"values of {len(found)} of {asked} prompts, from {self.config.algorithm.value_samples} responses each: {mean:.3f} on average; no "
            f"response to {best} of them has a reward above 0"
        )

    def value(self, source: str, name: str) -> float:
        """The optimal value of a prompt; NaN where it is not known."""
        row = self.config.algorithm
        rewards = torch.tensor(self.rewards.get(source, {}).get(name, []), dtype=torch.float64)
        return value_of(clip_scores(rewards, row.reward_clip).tolist(), row.value_beta)

    def __call__(self, step: int, groups: Sequence[Group]) -> None:  # noqa: ARG002  # as every Baseline
        """Fills the baselines of these groups, in place."""
        for group in groups:
            for t in group:
                t.baseline = self.value(t.prompt.source, t.prompt.id)

    def state(self) -> dict[str, Any]:
        """What is known, and stays shared: before the first step it only grows, so that a stop in between keeps all of it."""
        return {"samples": self.config.algorithm.value_samples, "asked": self.asked, "rewards": self.rewards}

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back."""
        self.asked, self.rewards = list(state["asked"]), {**state["rewards"]}
