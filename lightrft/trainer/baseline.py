"""Compares a response with more than its siblings: with another response to the same prompt, judged in the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lightrft.config import Config
from lightrft.models.processor import Processor
from lightrft.rewards.base import RewardRunner
from lightrft.trainer.flight import Group
from lightrft.trainer.length import penalise_length
from lightrft.trainer.rollout import rollout, training_sampling
from lightrft.trainer.sampler import Sampler
from lightrft.trainer.turns import Turns
from lightrft.types import Trajectory
from lightrft.utils.seeding import derive_seed


class Baseline(Protocol):
    """Fills `Trajectory.baseline` and `baseline_parts` of a step's groups, in place; called by all ranks.

    A group that has one already keeps it. One that has none afterwards is not learned from.
    """

    def __call__(self, step: int, groups: Sequence[Group]) -> None:
        """Fills the baselines of these groups, in place."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The reward of the most likely response, from the weights that sampled the others (ReMax)."""

    config: Config
    sampler: Sampler
    judge: RewardRunner
    processor: Processor
    turns: Turns | None = None
    """What replies to the policy, where anything does."""

    def __call__(self, step: int, groups: Sequence[Group]) -> None:
        """RuntimeError if the reward fails for the greedy responses to all prompts, of all ranks."""
        # Groups that waited know theirs already: from the weights that sampled them.
        new = [group for group in groups if not has_baseline(group)]
        # Words need no seed here. A picture begins with noise, so that it is another one in each step, of the same steps as the others.
        seed = derive_seed(self.config.seed, "baseline", step)
        sampling = training_sampling(self.config.rollout, seed, self.sampler.world)
        sampling = replace(sampling, n=1, temperature=0.0, support=False)
        prompts = [group[0].prompt for group in new]
        likely = self.sampler(
            lambda: rollout(
                self.sampler.engine,
                prompts,
                sampling,
                self.processor,
                turns=self.turns,
                progress=self.sampler.progress,
            )
        )
        judged = self.sampler.judged(self.judge, [t for (t,) in likely]).kept
        penalise_length(judged, self.config.algorithm, self.config.rollout.max_tokens)
        for answer in judged:
            place = (answer.group - sampling.first_index) // sampling.index_stride
            for t in new[place]:
                t.baseline, t.baseline_parts = answer.reward, answer.parts
        if not self.sampler.world.max(any(map(has_baseline, groups))):
            raise RuntimeError(
                f"step {step}: the reward failed for the greedy responses to all {len(groups)} prompts, so there is no baseline "
                "(algorithm.advantage=greedy_baseline). See the failures above, or set algorithm.advantage=reinforce."
            )


def has_baseline(group: Sequence[Trajectory]) -> bool:
    """Whether it is known what the responses of a group are compared with."""
    return not math.isnan(group[0].baseline)
