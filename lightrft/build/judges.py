"""Models that judge: the rewards `judge` and `reward_model`, from settings to models in a run's memory plan."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from lightrft.build.tables import ENGINES, OWN
from lightrft.config import POLICY, Config, JudgeConfig, LoraConfig, ModelConfig, RewardModelConfig
from lightrft.engines.base import Engine, MakeEngine
from lightrft.models.describe import text_shape
from lightrft.models.families import made_for
from lightrft.models.load import load_model, load_processor
from lightrft.models.processor import Processor
from lightrft.models.reward import load_reward_model, scores
from lightrft.models.source import Source
from lightrft.rewards.base import REWARDS, RewardRunner
from lightrft.rewards.models import (
    JUDGE,
    MODEL_REWARDS,
    REWARD_MODEL,
    GenerativeJudge,
    ModelReward,
    ScalarReward,
    judge_template,
)
from lightrft.rewards.remote import RemoteReward, secret
from lightrft.strategy.memory import Resident
from lightrft.strategy.single import SingleFrozen
from lightrft.utils.imports import resolve


def check_judging(config: Config, judges: Sequence[RewardRunner], *, training: bool = True) -> None:
    """ValueError if a reward that a model gives has no model, a model no use, or both want the device at the same time."""
    paths = {JUDGE: config.judge.path, REWARD_MODEL: config.reward_model.path}
    used = models_used(judges)
    for name, path in paths.items():
        if name in used and not path:
            raise ValueError(
                f"reward '{name}' needs a model. Set {MODEL_REWARDS[name]}{', e.g. policy' * (name == JUDGE)}."
            )
        if training and path and name not in used:
            raise ValueError(
                f"{MODEL_REWARDS[name]}={path} has no effect without the reward '{name}'. Add it to rewards.functions, e.g. "
                f"--rewards.functions {name} 1"
            )
    _check_remote(config, judges, training)
    if training and used and config.rollout.overlap_rewards:
        raise ValueError(
            f"rollout.overlap_rewards with the reward '{min(used)}': the model that judges and the rollout would want the device at the "
            "same time. Leave rollout.overlap_rewards out."
        )
    if len(used) > 1 and config.judge.path == POLICY:
        raise ValueError(
            "judge.path=policy with the reward 'reward_model': the policy judges in the rollout's phase and the reward model in "
            "another. Set judge.path to a model of its own."
        )
    if JUDGE in used:
        judge_template(config.judge)
        if config.judge.engine != OWN and ":" not in config.judge.engine:
            raise ValueError(
                f"judge.engine={config.judge.engine}: a judge's engine is {OWN}, or the import path of one that has its weights, "
                "e.g. examples/openai_engine.py:OpenAIEngine."
            )
    for name in used:
        if paths[name] != POLICY:
            model_with_processor(config, name)
        most_read(config, name)


def _check_remote(config: Config, judges: Sequence[RewardRunner], training: bool) -> None:
    """ValueError for a remote reward that nothing asks for."""
    asked = {name for judge in judges for name in judge.models}
    idle = [name for name in config.remote.urls if name not in asked]
    if training and idle:
        raise ValueError(
            f"remote.urls: the reward '{idle[0]}' has no effect. Add it to rewards.functions, e.g. --rewards.functions {idle[0]} 1"
        )


def models_used(judges: Sequence[RewardRunner]) -> set[str]:
    """Rewards of these judges that models on this machine give."""
    return {name for judge in judges for name in judge.models} & MODEL_REWARDS.keys()


def remote_rewards(config: Config) -> dict[str, ModelReward]:
    """Reward name -> what asks other machines for it. ValueError for a name that another reward has, or a missing key."""
    taken = [name for name in config.remote.urls if name in REWARDS or name in MODEL_REWARDS]
    if taken:
        raise ValueError(
            f"remote.urls: '{taken[0]}' is a reward of this machine. Call it otherwise, e.g. remote_{taken[0]}: ADDRESS#{taken[0]}."
        )
    if config.remote.urls and config.remote.key:
        secret(config.remote)
    return {name: RemoteReward(name, config.remote) for name in config.remote.urls}


def add_judging_models(
    config: Config, judges: Sequence[RewardRunner], engine: Engine, processor: Processor, device: torch.device
) -> dict[str, Resident]:
    """Puts the models that judge where they are asked for; gives what of them takes memory, by its name in strategy/memory.py: RESIDENCY."""
    used = models_used(judges)
    found: dict[str, ModelReward] = {}
    residents: dict[str, Resident] = {}
    if JUDGE in used:
        found[JUDGE], held = model_judge(config, engine, processor, device)
        residents |= held
    if REWARD_MODEL in used:
        found[REWARD_MODEL], held = reward_model(config, device)
        residents |= held
    for judge in judges:
        judge.models = {name: found.get(name, ask) for name, ask in judge.models.items()}
        judge.by_policy = JUDGE in judge.models and config.judge.path == POLICY
    return residents


def model_judge(
    config: Config, engine: Engine, processor: Processor, device: torch.device
) -> tuple[ModelReward, dict[str, Resident]]:
    """The judge in words, and its residents: none where the policy judges, or a server."""
    options, most = config.judge, most_read(config, JUDGE)
    if options.path == POLICY:
        return GenerativeJudge(engine.generate, processor, options, most), {}
    model, own = model_with_processor(config, JUDGE)
    if options.engine != OWN:
        make: MakeEngine = resolve({}, options.engine, "engine of the judge")
        with named(JUDGE):
            empty = Source(model, learns=False).empty()
        asked = make(empty, own, config.rollout)
        return GenerativeJudge(asked.generate, own, options, most), {}
    with named(JUDGE):
        frozen = held_whole(load_model(model, resting(config, device), trainable=False), config, device)
    asked = ENGINES[OWN](frozen.module, own, config.rollout)
    residents = {"judge weights": frozen.parts()["weights"], "judge cache": asked.parts()["cache"]}
    return GenerativeJudge(asked.generate, own, options, most), residents


def reward_model(config: Config, device: torch.device) -> tuple[ModelReward, dict[str, Resident]]:
    """The model that computes a number, and its residents."""
    options = config.reward_model
    model, own = model_with_processor(config, REWARD_MODEL)
    with named(REWARD_MODEL):
        frozen = held_whole(load_reward_model(model, options, resting(config, device)), config, device)

    def ask(conversations: Sequence[Sequence[int]]) -> list[float]:
        return scores(frozen.module, conversations, options.output_index, options.tokens_per_micro_batch)

    rated = ScalarReward(ask, own, most_read(config, REWARD_MODEL))
    return rated, {"reward model weights": frozen.parts()["weights"]}


def most_read(config: Config, name: str) -> int | None:
    """Most tokens that the model of a reward can be given to read; None without limit. ValueError if it can be given none."""
    options = config.judge if name == JUDGE else config.reward_model
    limits = [options.max_length]
    if options.path == POLICY:
        limits += [config.rollout.longest]
    if not options.max_length:
        with named(name):
            model = config.model if options.path == POLICY else other_model(config, options)
            limits += [made_for(text_shape(model)) or 0]
    most = min(filter(None, limits), default=None)
    if most is None or name != JUDGE:
        return most
    if most <= config.judge.max_tokens:
        raise ValueError(
            f"judge.max_tokens={config.judge.max_tokens} leaves no room for a prompt: the judge takes {most} tokens in all. Lower it, or "
            "set judge.max_length if the judge takes more."
        )
    return most - config.judge.max_tokens


def judging_models(config: Config) -> tuple[ModelConfig | None, ModelConfig | None]:
    """The judge and the reward model that every device holds, where there are any."""
    judge, reward = config.judge, config.reward_model
    held = judge.path not in ("", POLICY) and judge.engine == OWN
    return (
        other_model(config, judge) if held else None,
        other_model(config, reward) if reward.path else None,
    )


def model_with_processor(config: Config, name: str) -> tuple[ModelConfig, Processor]:
    """The model of a reward, and what turns texts into its tokens. ValueError naming its settings."""
    model = other_model(config, config.judge if name == JUDGE else config.reward_model)
    with named(name):
        return model, load_processor(model)


def other_model(config: Config, options: JudgeConfig | RewardModelConfig) -> ModelConfig:
    """A model beside the policy, held in its type, without adapters."""
    return replace(
        config.model,
        path=options.path,
        revision=options.revision,
        chat_template=options.chat_template,
        lora=LoraConfig(),
    )


@contextmanager
def named(section: str) -> Iterator[None]:
    """Errors inside name the settings of this section instead of the policy's."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            re.sub(r"\bmodel\.(path|revision|chat_template)\b", rf"{section}.\1", str(error))
        ) from None


def resting(config: Config, device: torch.device) -> torch.device:
    """Where a model is that is not needed now."""
    return torch.device("cpu") if config.strategy.offload else device


def held_whole(module: nn.Module, config: Config, device: torch.device) -> SingleFrozen:
    """A model that every process has whole: ranks judge their own responses, each at its own pace."""
    return SingleFrozen(module, device, config.strategy.offload and device.type != "cpu")
