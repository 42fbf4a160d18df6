"""The optimal value of each training prompt, measured before the first step with the policy that the run begins with (A*-PO)."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
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
from lightrft.runs.folder import homeless
from lightrft.trainer.flight import Group
from lightrft.trainer.rollout import rollout, training_sampling
from lightrft.trainer.sampler import Sampler
from lightrft.trainer.turns import Turns
from lightrft.types import Trajectory
from lightrft.utils.seeding import derive_seed

log = logging.getLogger("lightrft")
READ = {
    "algorithm": ("value_samples",),
    "rollout": (
        *("max_tokens", "temperature", "first_token_temperature", "first_token_top_k"),
        *("top_k", "top_p", "min_p", "stop"),
    ),
    "rewards": ("functions",),
    "tasks": ("rewards",),
    "environment": (
        *("name", "options", "tools", "calls", "announce"),
        *("max_turns", "forks", "turn_tokens", "reply_tokens"),
    ),
    "judge": (
        *("path", "revision", "chat_template", "max_length", "against", "template"),
        *("score_pattern", "max_score", "samples", "temperature", "max_tokens"),
    ),
    "reward_model": ("paths", "revision", "chat_template", "max_length"),
    "remote": ("urls", "protocol"),
}
"""Section -> its settings that decide what rewards the responses of a model get."""


def measured_with(config: Config) -> dict[str, Any]:
    """Name of a setting -> its value, of all those that the rewards depend on from which values are made; no path names the home folder."""
    return {
        f"{section}.{name}": homeless(getattr(getattr(config, section), name))
        for section, names in READ.items()
        for name in names
    }


@dataclass
class OptimalValues:
    """What responses are compared with: a `Baseline`, and a Part of checkpoints.

    Rewards are kept as they were given, so that a run may go on with another algorithm.value_beta or algorithm.reward_clip. A prompt none of
    whose responses could be judged has no value, and is not learned from.
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

    def prepare(self) -> bool:
        """Asks what has not been asked yet, a step's worth of prompts at a time, and whether there was any; called by all ranks, before
        any update. RuntimeError if no response to any prompt could be judged."""
        if self.asked[0] == sum(map(len, self.prompts.sources)):
            return False
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
        self._need_some(len(everything))
        self._tell(len(everything))
        return True

    def _measured(self, start: int, some: Sequence[Asked]) -> list[tuple[str, str, float]]:
        """Source, prompt and reward of each response of this rank to its part of `some`, whose first has the place `start`."""
        world, row = self.sampler.world, self.config.algorithm
        sampling = training_sampling(self.config.rollout, derive_seed(self.config.seed, "values", 0), world)
        sampling = replace(
            sampling, n=row.value_samples, first_index=start + world.rank, support=False
        )  # none is learned from
        opened = [p for one in some[world.rank :: world.size] if (p := self.prompts.open(one)) is not None]

        def draw() -> list[list[Trajectory]]:
            told = self.sampler.progress
            engine = self.sampler.engine
            return rollout(engine, opened, sampling, self.processor, turns=self.turns, progress=told)

        answers = [t for group in self.sampler(draw) for t in group]
        self.sampler.judged(self.judge, answers)
        # Also those whose siblings failed: what is asked for here is a mean, which a single response has too.
        return [(t.prompt.source, t.prompt.id, t.reward) for t in answers if self.judge.has_judged(t)]

    def _need_some(self, asked: int) -> None:
        """RuntimeError if no prompt has a value, on all ranks; a warning if some have none."""
        known = sum(map(len, self.rewards.values()))
        if not known:
            self.asked[0] = 0  # so that a resume measures, with a reward that works
            raise RuntimeError(
                f"the rewards failed for the responses to all {asked} prompts, so there are no values to compare with "
                f"(algorithm.advantage={self.config.algorithm.advantage}). See the failures above and mend the reward, or set "
                "algorithm.advantage=reinforce."
            )
        if known < asked and self.sampler.world.is_first:
            log.warning(
                "%d of %d prompts have no value, since no response to them could be judged: they are not learned from",
                asked - known,
                asked,
            )

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
        self.fill(groups)

    def fill(self, groups: Iterable[Group]) -> None:
        """Fills the baselines of these groups in place, whatever they had of other settings or another algorithm.advantage."""
        for group in groups:
            for t in group:
                t.baseline, t.baseline_parts = self.value(t.prompt.source, t.prompt.id), {}

    def state(self) -> dict[str, Any]:
        """What is known, and stays shared: before the first step it only grows, so that a stop in between keeps what was measured up to the
        last step's worth of prompts."""
        return {"settings": measured_with(self.config), "asked": self.asked, "rewards": self.rewards}

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back; what was measured with other settings is dropped, and measured anew, as it can be before the first step
        (later settings that differ are refused, see build/assemble.py)."""
        changed = changed_since(state, self.config)
        if changed:
            log.info("values of %d prompts are measured anew: %s has changed", state["asked"][0], changed[0])
            return
        self.asked, self.rewards = list(state["asked"]), {**state["rewards"]}


def changed_since(state: Mapping[str, Any], config: Config) -> list[str]:
    """The names of settings that differ from those with which the values in a `state` were measured."""
    return [name for name, value in measured_with(config).items() if state["settings"].get(name) != value]
