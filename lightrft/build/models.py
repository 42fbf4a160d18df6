"""From settings to models: critic, reference, teacher, what the engine samples with, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from lightrft.algorithms.algorithm import Algorithm
from lightrft.build.other_models import named
from lightrft.build.reward_models import Place
from lightrft.build.tables import OWN
from lightrft.config import Config, LoraConfig, ModelConfig, StrategyConfig
from lightrft.engines.paged_kernel import check_backend
from lightrft.models.critic_source import CriticSource
from lightrft.models.describe import text_shape, without_weights
from lightrft.models.experts import check_experts
from lightrft.models.kinds import PolicyKind
from lightrft.models.load import load_processor
from lightrft.models.lora import is_adapted, starts_as_base
from lightrft.models.processor import Processor
from lightrft.models.reward_source import writing_processor
from lightrft.models.sequence import check_shared
from lightrft.models.source import Source
from lightrft.models.values import critic_config
from lightrft.strategy.base import Frozen, Strategy, Trainable
from lightrft.strategy.single import WithoutAdapters
from lightrft.types import Sampling
from lightrft.utils.device import pick_device


def optimizer_steps(config: Config, steps: int) -> int:
    """Optimizer steps of so many training steps."""
    return steps * config.update.epochs * config.update.num_minibatches


def actor_updates(config: Config) -> int:
    """Optimizer steps of the actor in the whole run."""
    return optimizer_steps(config, config.steps - config.critic.warmup_steps)


def engine_module(config: Config, kind: PolicyKind, strategy: Strategy, actor: Trainable) -> nn.Module:
    """What an engine of this package samples with: the actor itself or, where that is in pieces or learns meanwhile, a model that is given
    its weights."""
    if not strategy.shards and not config.rollout.max_staleness:
        return actor.module
    return kind.source(learns=False).empty(strategy.device)


def build_critic(config: Config, algorithm: Algorithm, strategy: Strategy) -> Trainable | None:
    """The model that predicts rewards, if the advantage asks for one."""
    if not algorithm.needs_critic:
        return None
    return strategy.trainable(
        critic_source(config), config.critic.optimizer, optimizer_steps(config, config.steps)
    )


def critic_source(config: Config) -> CriticSource:
    """Where the critic comes from: critic.path, MODEL or MODEL:OUTPUT, or the model that the actor starts from."""
    place = Place.of(config.critic.path)
    cost = config.critic.cost_output if config.constraint.cost else None
    return CriticSource(critic_config(config.model, place.path), output=place.output, cost_output=cost)


def check_reference(model: ModelConfig) -> None:
    """ValueError if the model that a run begins from is not there to compare with: the reference is read from model.path."""
    if model.lora.start:
        raise ValueError(
            f"model.lora.start={model.lora.start} in a run that compares with the model it began from: that is model.path with these "
            "adapters, and no folder holds it. Set model.path to the merged model (RUN/model) and leave model.lora.start out."
        )


def build_reference(source: Source, policy: Trainable, strategy: Strategy) -> Frozen:
    """The model that the policy, made of `source`, started from: the policy without its adapters where it has some."""
    if starts_as_base(source.config.lora) and is_adapted(policy.module):
        return WithoutAdapters(policy)
    return strategy.frozen(replace(source, learns=False, rounded=True))


def teacher_model(config: Config) -> ModelConfig:
    """The teacher as a model: held as the actor is, without adapters."""
    teacher = config.teacher
    return replace(config.model, path=teacher.path, revision=teacher.revision, lora=LoraConfig())


def build_processor(config: Config) -> Processor:
    """The policy's tokenizer and template. ValueError for stop texts that its responses could never hold."""
    processor = load_processor(config.model, config.media)
    processor.stopping(Sampling(stop=tuple(config.rollout.stop)))
    return processor


def check_teacher(config: Config, processor: Processor) -> None:
    """ValueError if the teacher does not speak the policy's tokens: its log-probs would be of other words."""
    if not config.teacher.path:
        return
    with named("teacher"):  # its chat template is not needed
        teacher = writing_processor(replace(teacher_model(config), chat_template="plain"))
    mine, its = processor.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if mine != its:
        apart = len(mine.items() ^ its.items())
        raise ValueError(
            f"teacher.path={config.teacher.path}: {apart} tokens differ from those of model.path={config.model.path}, and a teacher "
            "judges token by token. Take a teacher with the same tokenizer, e.g. a larger model of the same family."
        )


def check_models(config: Config, algorithm: Algorithm) -> None:
    """ValueError if critic.path or critic.cost_output names no output of a reward model, a setting is of experts that the model has not, or the processes of strategy.sequence_parallel cannot compute one of
    the models together."""
    if algorithm.needs_critic:
        critic_source(config).check()
    check_routing(config)
    check_team(config.strategy, named_models(config, algorithm))


def named_models(config: Config, algorithm: Algorithm) -> dict[str, ModelConfig]:
    """Setting -> the model it names, of those that a step computes log-probs or values with."""
    models = {"model.path": config.model}
    if algorithm.needs_critic and config.critic.path:
        models["critic.path"] = critic_source(config).config
    if algorithm.needs_teacher:
        models["teacher.path"] = teacher_model(config)
    return models


def check_pages(config: Config) -> None:
    """ValueError if the engine of this package cannot read its pages as the settings say."""
    if config.rollout.engine != OWN:
        return
    device, dtype = pick_device(config.strategy.device), getattr(torch, config.model.dtype)
    check_backend(config.rollout, device, dtype, partial(text_shape, config.model))


def check_routing(config: Config) -> None:
    """ValueError for settings of mixtures of experts with a model that is none."""
    for setting, on in (
        (f"rollout.routing_replay={config.rollout.routing_replay}", config.rollout.routing_replay != "off"),
        (
            f"algorithm.router_aux_coefficient={config.algorithm.router_aux_coefficient:g}",
            config.algorithm.router_aux_coefficient,
        ),
    ):
        if on:
            check_experts(setting, config.model.path, without_weights(config.model))


def check_team(strategy: StrategyConfig, models: Mapping[str, ModelConfig]) -> None:
    """ValueError if a team of strategy.sequence_parallel cannot compute one of these together: setting -> model it names."""
    if strategy.sequence_parallel > 1:
        shapes = {setting: without_weights(model).config for setting, model in models.items()}
        check_shared(strategy.sequence_parallel, shapes)


def build_teacher(config: Config, algorithm: Algorithm, strategy: Strategy) -> Frozen | None:
    """The model whose log-probs the policy follows, if there is one."""
    if not algorithm.needs_teacher:
        return None
    return strategy.frozen(Source(teacher_model(config), learns=False))
