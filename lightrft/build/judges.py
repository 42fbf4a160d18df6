"""Models that judge: the reward `judge` and those of reward models, from settings to models in a run's memory plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import torch

from lightrft.build.other_models import held_whole, named
from lightrft.build.reward_models import (
    check_reward_models,
    held_reward_models,
    load_reward_models,
    most_tokens,
)
from lightrft.build.tables import ENGINES, OWN
from lightrft.config import POLICY, Config, LoraConfig, ModelConfig
from lightrft.datasets.prompts import Asked
from lightrft.engines.base import Engine, MakeEngine
from lightrft.models.describe import text_shape
from lightrft.models.families import made_for
from lightrft.models.load import load_model
from lightrft.models.processor import Processor
from lightrft.models.reward_source import writing_processor
from lightrft.models.source import Source
from lightrft.rewards.asked import TEXT
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.comparing import ComparingJudge
from lightrft.rewards.models import (
    REWARD_MODEL,
    GenerativeJudge,
    Output,
    judge_template,
)
from lightrft.rewards.table import JUDGE
from lightrft.strategy.memory import Resident
from lightrft.utils.imports import resolve


def check_judging(config: Config, judges: Sequence[RewardRunner], *, training: bool = True) -> None:
    """ValueError if a reward that a model gives has no model, a model no use, or both want the device at the same time."""
    scored = config.reward_model.paths
    used = models_used(config, judges)
    if JUDGE in used and not config.judge.path:
        raise ValueError(f"reward '{JUDGE}' needs a model. Set judge.path, e.g. policy.")
    settings = {f"reward_model.paths.{key}": (key, path) for key, path in scored.items()}
    settings |= {"judge.path": (JUDGE, config.judge.path)} if config.judge.path else {}
    for setting, (name, path) in settings.items():
        if training and name not in used:
            raise ValueError(
                f"{setting}={path} has no effect without the reward '{name}'. Add it to rewards.functions, e.g. "
                f"--rewards.functions {name} 1"
            )
    _check_remote(config, judges, training)
    if training:
        _check_late(config, used)
    rated = sorted(used & scored.keys())
    if rated and JUDGE in used and config.judge.path == POLICY:
        raise ValueError(
            f"judge.path=policy with the reward '{rated[0]}' of a reward model: the policy judges in the rollout's phase and reward models "
            "in another. Set judge.path to a model of its own."
        )
    if JUDGE in used:
        judge_template(config.judge)
        if training:
            check_siblings(config)
        if config.judge.engine != OWN and ":" not in config.judge.engine:
            raise ValueError(
                f"judge.engine={config.judge.engine}: a judge's engine is {OWN}, or the import path of one that has its weights, "
                "e.g. examples/openai_engine.py:OpenAIEngine."
            )
        if config.judge.path != POLICY:
            judge_with_processor(config)
        most_read(config, JUDGE)
    check_reward_models(config, rated)


def check_siblings(config: Config) -> None:
    """ValueError if the judge compares a response with more siblings than it has."""
    size, options = config.rollout.group_size, config.judge
    if options.against != "siblings":
        return
    if size < 2:
        raise ValueError(
            f"judge.against=siblings compares responses to one prompt, and rollout.group_size={size}. Set rollout.group_size=8, or "
            "judge.against=target."
        )
    if options.rivals >= size:
        raise ValueError(
            f"judge.rivals={options.rivals}: a response has {size - 1} siblings (rollout.group_size={size}). Set it to at most {size - 1}."
        )


def check_targets(config: Config, judge: RewardRunner, prompts: Iterable[Asked]) -> None:
    """ValueError for a prompt without the target that its responses are to be compared with."""
    if config.judge.against != "target" or JUDGE not in judge.models:
        return
    asked = {source for source, weights in judge.weights.items() if JUDGE in weights}
    without = next((p for p in prompts if p.source in asked and p.target is None), None)
    if without is not None:
        raise ValueError(
            f"judge.against=target compares responses with the target, and {without.id} has none. Set tasks.target_field to the field that "
            "holds it, or judge.against=siblings."
        )


def _check_late(config: Config, used: Collection[str]) -> None:
    """ValueError if a model that judges would be asked while the next step is sampled where it computes."""
    if used and config.rollout.overlap_rewards:
        raise ValueError(
            f"rollout.overlap_rewards with the reward '{min(used)}': the model that judges and the rollout would want the device at the "
            "same time. Leave rollout.overlap_rewards out."
        )
    if JUDGE in used and config.judge.path == POLICY and config.rollout.max_staleness:
        raise ValueError(
            f"rollout.max_staleness={config.rollout.max_staleness} with judge.path=policy: the engine would have to judge this step while it samples the "
            "next one. Set judge.path to a model of its own, or leave rollout.max_staleness out."
        )


def _check_remote(config: Config, judges: Sequence[RewardRunner], training: bool) -> None:
    """ValueError for a remote reward that nothing asks for."""
    asked = {name for judge in judges for name in judge.models}
    idle = [name for name in config.remote.urls if name not in asked]
    if training and idle:
        raise ValueError(
            f"remote.urls: the reward '{idle[0]}' has no effect. Add it to rewards.functions, e.g. --rewards.functions {idle[0]} 1"
        )


def models_used(config: Config, judges: Sequence[RewardRunner]) -> set[str]:
    """Rewards of these judges that models on this machine give."""
    return {name for judge in judges for name in judge.models} - config.remote.urls.keys()


def add_judging_models(
    config: Config,
    judges: Sequence[RewardRunner],
    engine: Engine | None,
    processor: Processor | None,
    device: torch.device,
    makes: Collection[str] = (TEXT,),
) -> dict[str, Resident]:
    """Puts the models that judge where they are asked for; gives what of them takes memory, by its name in strategy/memory.py: RESIDENCY. `makes`: what the
    policy's responses hold (models/kinds.py)."""
    used = models_used(config, judges)
    found: dict[str, Output] = {}
    residents: dict[str, Resident] = {}
    if JUDGE in used:
        found[JUDGE], residents = model_judge(config, engine, processor, device)
    rated, held = load_reward_models(config, sorted(used - {JUDGE}), device, makes)
    found |= rated
    residents |= held
    for judge in judges:
        judge.models = {name: found.get(name, ask) for name, ask in judge.models.items()}
        judge.by_policy = JUDGE in judge.models and config.judge.path == POLICY
    return residents


def check_without_policy(config: Config, command: str) -> None:
    """ValueError where the policy is to judge and there is none."""
    if config.judge.path == POLICY:
        raise ValueError(
            f"judge.path={POLICY}: `lightrft {command}` samples no policy. Set judge.path to a model."
        )


def hold_judging_models(config: Config, judge: RewardRunner, device: torch.device) -> None:
    """Puts the models that judge where they are asked for, on the device for good: for commands without a policy and phases."""
    for resident in add_judging_models(config, [judge], None, None, device).values():
        resident.onload()


def model_judge(
    config: Config, engine: Engine | None, processor: Processor | None, device: torch.device
) -> tuple[Output, dict[str, Resident]]:
    """The judge in words, and its residents: none where the policy judges, or a server."""
    options = config.judge
    if options.path == POLICY:
        assert engine is not None
        assert processor is not None
        return judge_in_words(config, engine, processor), {}
    model, own = judge_with_processor(config)
    if options.engine != OWN:
        make: MakeEngine = resolve({}, options.engine, "engine of the judge")
        with named(JUDGE):
            empty = Source(replace(model, kernels="off"), learns=False).empty()  # others compute it
        return judge_in_words(config, make(empty, own, config.rollout), own), {}
    with named(JUDGE):
        # Not where it rests: an engine, and kernels, look where it is now. The memory plan moves it out when it begins.
        frozen = held_whole(load_model(model, device, trainable=False), config, device)
    asked = ENGINES[OWN](frozen.module, own, config.rollout)
    residents = {"judge weights": frozen.parts()["weights"], "judge cache": asked.parts()["cache"]}
    return judge_in_words(config, asked, own), residents


def judge_in_words(config: Config, engine: Engine, processor: Processor) -> Output:
    """The reward of a judge that this engine answers for: a score of each response, or its win rate."""
    given = (engine.generate, processor, config.judge, most_read(config, JUDGE))
    sees = processor.media is not None
    if config.judge.against == "none":
        return Output(GenerativeJudge(*given), sees_media=sees)
    judge = ComparingJudge(*given)
    return Output(judge, counted=judge.counted, sees_media=sees)


def most_read(config: Config, name: str) -> int | None:
    """Most tokens that the model of a reward can be given to read; None without limit. ValueError if it can be given none."""
    if name != JUDGE:
        return most_tokens(config, name)
    options = config.judge
    limits = [options.max_length]
    if options.path == POLICY:
        limits += [config.rollout.longest]
    if not options.max_length:
        with named(JUDGE):
            model = config.model if options.path == POLICY else judge_model(config)
            limits += [made_for(text_shape(model)) or 0]
    most = min(filter(None, limits), default=None)
    if most is None:
        return most
    if most <= options.max_tokens:
        raise ValueError(
            f"judge.max_tokens={options.max_tokens} leaves no room for a prompt: the judge takes {most} tokens in all. Lower it, or "
            "set judge.max_length if the judge takes more."
        )
    return most - options.max_tokens


def section_of(name: str) -> str:
    """The settings of the model of a reward."""
    return JUDGE if name == JUDGE else REWARD_MODEL


def judging_models(config: Config) -> tuple[ModelConfig | None, dict[str, ModelConfig]]:
    """The judge that every device holds, if there is one, and the reward models by their names in the memory table."""
    return named_judge(config).get("judge.path"), held_reward_models(config)


def named_judge(config: Config) -> dict[str, ModelConfig]:
    """judge.path -> the judge that every device holds; nothing where there is none."""
    held = config.judge.path not in ("", POLICY) and config.judge.engine == OWN
    return {"judge.path": judge_model(config)} if held else {}


def judge_with_processor(config: Config) -> tuple[ModelConfig, Processor]:
    """The model of the judge, and what turns texts into its tokens. ValueError naming its settings."""
    model = judge_model(config)
    with named(JUDGE):
        return model, writing_processor(model, config.media)


def judge_model(config: Config) -> ModelConfig:
    """The judge beside the policy, held in its type, without adapters; an engine takes no compiled layers."""
    options = config.judge
    return replace(
        config.model,
        path=options.path,
        revision=options.revision,
        chat_template=options.chat_template,
        lora=LoraConfig(),
        compile=False,
    )
