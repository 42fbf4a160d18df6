"""What every kind of training run prepares: this process, the state to go on from, and where it writes what it does."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from lightrft.config import ZERO, ModelConfig, RunConfig, StrategyConfig, command_of
from lightrft.config.layers import values
from lightrft.console.progress import Progress
from lightrft.models.base import check_base
from lightrft.models.compiled import check_compiling, check_layers
from lightrft.models.describe import is_pipeline, without_weights
from lightrft.models.kernels import check_kernels, check_known
from lightrft.models.processor import Processor
from lightrft.parallel.status import STATUS
from lightrft.parallel.world import World
from lightrft.runs.folder import homeless
from lightrft.runs.hooks import StepHook, found_hook
from lightrft.runs.layout import RunFolder
from lightrft.runs.live import Events, Status, note_environment
from lightrft.runs.metrics import Logger
from lightrft.runs.notify import Notifier, Receiver, found_receiver
from lightrft.runs.sinks import Sinks, found
from lightrft.runs.trackers import Opened
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.trainer.run import Journal
from lightrft.utils.device import pick_device, reuse_host_memory, use_tf32
from lightrft.utils.peaks import known_teraflops
from lightrft.utils.seeding import seed_everything

log = logging.getLogger("lightrft")


def prepare_process(config: RunConfig) -> None:
    """Seeds, threads and memory habits of this process. ValueError for a sink that is not there, before anything is made."""
    found(config.log.to)
    if config.strategy.threads:
        torch.set_num_threads(config.strategy.threads)
    use_tf32(pick_device(config.strategy.device), config.strategy.tf32)
    reuse_host_memory()
    disable_progress_bar()  # transformers' own bars would tear the live picture
    seed_everything(config.seed)


def check_watched(config: RunConfig) -> Receiver | None:
    """Whom log.notify names; None if nobody. ValueError for that, or for a hook of log.on_step, that is not there."""
    if config.log.on_step:
        found_hook(config.log.on_step)
    return found_receiver(config.log.notify, config.log.notify_key)


def build_notifier(
    config: RunConfig, run: Path, world: World, stack: contextlib.ExitStack
) -> Notifier | None:
    """The notifier that tells from now on how the run was left, last of all on the stack; on the first rank, where anybody is to be told. ValueError as of
    `check_watched`."""
    receiver = check_watched(config)
    if receiver is None or not world.is_first:
        return None
    return stack.enter_context(Notifier(receiver, run, command_of(config)))


def check_fused(config: RunConfig, models: Mapping[str, ModelConfig]) -> None:
    """ValueError, before any weight loads, if `model.compile` or `model.kernels` cannot be had here, or not for a model or backend.

    `models`: setting -> model that it names, of all that take these options.
    """
    device = pick_device(config.strategy.device)
    if config.model.compile:
        _check_strategy(config.strategy)
    for setting, model in models.items():
        fused = {"model.compile=true": model.compile, "model.kernels=liger": model.kernels == "liger"}
        asked = [option for option, on in fused.items() if on]
        called = f"{setting}={model.path}"
        if asked and is_pipeline(model):
            raise ValueError(
                f"{asked[0]}: it is for decoder layers, and {called} is a diffusion pipeline. Leave it out."
            )
        if model.compile:
            check_layers(without_weights(model), called)
        check_compiling(model, device)
        check_kernels(model, device)
        if model.kernels == "liger":
            check_known(without_weights(model), called)


def _check_strategy(strategy: StrategyConfig) -> None:
    """ValueError for what compiled layers were not tried with."""
    tried = {
        f"strategy.backend={strategy.backend}": strategy.backend not in ZERO,
        f"strategy.sequence_parallel={strategy.sequence_parallel}": strategy.sequence_parallel == 1,
    }
    for setting, was in tried.items():
        if not was:
            name = setting.partition("=")[0]
            raise ValueError(
                f"model.compile=true with {setting}: compiled layers were not tried with it. Set model.compile=false, or another {name}."
            )


def peak_teraflops(strategy: StrategyConfig, model: ModelConfig, device: torch.device) -> float | None:
    """The rate at which a device multiplies matrices, 10^12 operations a second: as set, else what is known of it; None if nothing is."""
    return strategy.peak_teraflops or known_teraflops(device, getattr(torch, model.dtype))


def dated(processor: Processor, run: Path, world: World) -> Processor:
    """The processor, whose chat template sees the day on which the run began, on all ranks and after a resume."""
    processor.day = world.gather(RunFolder(run).begun or datetime.now())[0]
    return processor


def shared(option: str, number: int, world: World) -> None:
    """ValueError if the ranks cannot all have the same share of what an option counts."""
    if number % world.size:
        raise ValueError(
            f"{option}={number} cannot be shared by {world.size} processes. Set it to a multiple of {world.size}."
        )


def last_state(run: Path, checkpoints: Checkpoints, config: RunConfig, steps: int) -> dict[str, Any] | None:
    """The state in the newest complete checkpoint; None for a run that was stopped before its first, to begin again.

    ValueError if a run of `steps` steps from `config.model` cannot go on from it, and for one that has finished and holds none.
    """
    command = command_of(config)
    found = checkpoints.latest()
    if found is not None:
        state = checkpoints.load(found)
        if state["done"] > steps:
            raise ValueError(
                f"steps={steps}: the run has {state['done']} steps behind it ({found}). Set steps to at least that."
            )
        check_base(config.model, state.get("base", ""), found)
        return state
    if checkpoints.folder.exists() and any(checkpoints.folder.iterdir()):
        raise ValueError(
            f"no checkpoint in {checkpoints.folder} is complete, so there is nothing to go on from. Start again with "
            f"`lightrft {command} {RunFolder(run).config}`."
        )
    if RunFolder(run).summary.exists():
        raise ValueError(
            f"{run} has finished and holds no checkpoint, so there is nothing to go on from, and to begin again would lose what it made. "
            f"Begin another from its weights: `lightrft {command} {RunFolder(run).config} --model.path {RunFolder(run).model} --run FOLDER`."
        )
    log.warning("the run was stopped before its first checkpoint and begins again")
    return None


def checked_base(state: dict[str, Any] | None) -> str:
    """Digest that `last_state` has found the base weights to have; empty where it looked at none."""
    return state.get("base", "") if state else ""


def build_journal(
    config: RunConfig,
    steps: int,
    run: Path,
    world: World,
    state: dict[str, Any] | None,
    stack: contextlib.ExitStack,
    notifier: Notifier | None,
) -> Journal:
    """Metrics and live picture of a run of `steps` steps, from those on that `state` has done; files are closed with the stack. The notifier
    then knows how far the run is."""
    files, done = RunFolder(run), state["done"] if state else 0
    progress = Progress(config, steps, done, run=run, show=world.is_first)
    logger, sinks, hook = None, None, None
    if world.is_first:
        if notifier is not None:
            notifier.now = lambda: _now(progress)
        tensorboard = config.log.tensorboard and "tensorboard" not in config.log.to
        logger = Logger(run, done if state else -1, tensorboard=tensorboard)
        stack.enter_context(logger)
        sinks = stack.enter_context(build_sinks(config, run, done))
        files.drop_responses_after(done)
        note_environment(run, world.size)
        stack.enter_context(Status(files.status, lambda: _now(progress)))
        if config.log.on_step:
            hook = stack.enter_context(StepHook(config.log.on_step, run))
    return Journal(run, progress, logger, world.rank, sinks, Events(files.events(world.rank)), hook=hook)


def _now(progress: Progress) -> dict[str, Any]:
    """What a run does at this moment, for whoever looks at it from outside."""
    left = progress.seconds_left()
    return {
        "phase": progress.current or STATUS.phase,
        "step": STATUS.step,
        "done": progress.done,
        "steps": progress.total,
        "responses": [progress.answered, progress.expected],
        "seconds_left": None if left is None else round(left),
    }


def build_sinks(config: RunConfig, run: Path, done: int) -> Sinks:
    """Where metrics go besides the run folder. ValueError for a sink that is not there."""
    return Sinks(config.log.to, Opened(run, run.absolute().name, values(homeless(config)), done))
