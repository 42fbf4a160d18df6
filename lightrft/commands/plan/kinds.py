"""Plans by what learns."""

from __future__ import annotations

from collections.abc import Callable

from lightrft.commands.plan import Hardware, Lengths, Plan, given_pictures, offline, pictures
from lightrft.commands.plan import plan as plan_words
from lightrft.commands.plan.offline import OfflinePlan
from lightrft.config import Config, ModelConfig, OfflineConfig, RewardTrainingConfig
from lightrft.models.describe import is_pipeline


def _words(config: Config, hardware: Hardware, prompt: int, response: int) -> Plan:
    lengths = Lengths(prompt or config.tasks.max_prompt_tokens, response or config.rollout.max_tokens)
    return plan_words(config, hardware, lengths)


PLANS: tuple[tuple[Callable[[ModelConfig], bool], Callable[[Config, Hardware, int, int], Plan]], ...] = (
    (is_pipeline, pictures.plan),
    (lambda _: True, _words),
)
"""Whether a model is of a kind -> its plan for these devices, prompts and responses of so many tokens; 0: as the settings allow. The first
row that holds counts."""


def plan_of(config: Config, hardware: Hardware, prompt: int, response: int) -> Plan:
    """The plan of a run of reinforcement learning. ValueError for a model that is not there, or settings that it cannot obey."""
    return next(plan for holds, plan in PLANS if holds(config.model))(config, hardware, prompt, response)


def _offline_words(config: OfflineConfig, hardware: Hardware, prompt: int, response: int) -> OfflinePlan:
    longest = prompt or config.tasks.max_prompt_tokens
    return offline.plan(config, hardware, longest, response or config.max_tokens)


OFFLINE: tuple[
    tuple[Callable[[ModelConfig], bool], Callable[[OfflineConfig, Hardware, int, int], OfflinePlan]], ...
] = ((is_pipeline, given_pictures.plan), (lambda _: True, _offline_words))
"""Whether a model is of a kind -> its plan of a run that learns from given responses; as above."""


def offline_plan_of(config: OfflineConfig, hardware: Hardware, prompt: int, response: int) -> OfflinePlan:
    """The plan of a run that learns from given responses. ValueError for a model that is not there, or settings that it cannot obey."""
    found = OFFLINE[-1:] if isinstance(config, RewardTrainingConfig) else OFFLINE
    return next(plan for holds, plan in found if holds(config.model))(config, hardware, prompt, response)
