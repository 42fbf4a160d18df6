"""From an SFTConfig to parts that work together: `lightrft sft`."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from pathlib import Path

import torch

from lightrft.app import STRATEGIES, check_team, claimed, last_state, prepare_process, shared
from lightrft.config import SFTConfig
from lightrft.console.progress import Progress, report_losses
from lightrft.datasets.conversations import Conversations
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Opener
from lightrft.models.load import load_processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.runs.curves import draw_curves
from lightrft.runs.folder import keep_settings
from lightrft.runs.metrics import Logger
from lightrft.strategy.base import Trainable
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.tasks.table import Split, load_task
from lightrft.trainer.sft import HeldOut, SFTTrainer
from lightrft.types import Prompt
from lightrft.utils.atomic import explained, write_text
from lightrft.utils.device import device_bytes, pick_device, release_memory
from lightrft.utils.imports import resolve
from lightrft.utils.interrupt import Interrupt

log = logging.getLogger("lightrft")


def train(config: SFTConfig, resume: Path | None = None) -> Path:
    """Runs or goes on with supervised fine-tuning and returns its folder. Errors in settings come before any weight loads.

    Raises Stopped, after saving, if SIGTERM or Ctrl-C came.
    """
    started = time.perf_counter()
    with (
        World.joined(pick_device(config.strategy.device), config.strategy.timeout_seconds) as world,
        claimed(config, resume, world, "sft") as (run, again, terminal),
        contextlib.ExitStack() as stack,
    ):
        trainer = build_trainer(config, run, stack, started=started, resume=again)
        terminal.show = trainer.progress.note
        if again and world.is_first:
            keep_settings(run, config, trainer.done)
        trainer.train()
        if world.is_first:
            with explained(run):
                finish(trainer, stack)
    return run


def build_trainer(
    config: SFTConfig, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> SFTTrainer:
    """All parts of a run. What needs no weights is built first, so that mistakes show at once."""
    prepare_process(config)
    world = World.current(config.strategy.sequence_parallel)
    device = pick_device(config.strategy.device)
    strategy = resolve(STRATEGIES, config.strategy.backend, "strategy backend")(config.strategy, device)
    shared("batch_size", config.batch_size, world)
    processor = load_processor(config.model, config.media)
    check_team(config.strategy, {"model.path": config.model})
    conversations = Conversations.of(processor, config)
    prompts = build_loader(config, conversations, world)
    held_out = build_held_out(config, conversations)
    steps = config.steps or math.ceil(
        config.epochs * sum(len(source) for source in prompts.sources) / config.batch_size
    )
    checkpoints = Checkpoints(run, config.checkpoint, world)
    state = last_state(checkpoints, "sft") if resume else None
    done = state["done"] if state else 0

    model = strategy.trainable(Source(config.model), config.optimizer, steps)
    memory_plan = build_memory_plan(model, device)
    logger = None
    if world.is_first:
        logger = Logger(run, done if state else -1, tensorboard=config.log.tensorboard)
        stack.enter_context(logger)
    progress = Progress(config, steps, done, run=run, show=world.is_first)
    trainer = SFTTrainer(
        config=config,
        steps=steps,
        run=run,
        world=world,
        device=device,
        memory_plan=memory_plan,
        model=model,
        processor=processor,
        prompts=prompts,
        held_out=held_out,
        checkpoints=checkpoints,
        logger=logger,
        progress=progress,
        started=started,
        interrupt=Interrupt(world.max),
    )
    if state is not None:
        trainer.load(state)
    stack.enter_context(progress)
    return trainer


def build_loader(config: SFTConfig, conversations: Conversations, world: World) -> PromptLoader:
    """The endless draw of training conversations."""
    if not config.tasks.train:
        raise ValueError(
            "tasks.train is empty: nothing to learn. For your own rows: --tasks.train file 1 --tasks.train-file rows.jsonl"
        )
    sources = [
        (prompts_of(config, name, "train", conversations), share)
        for name, share in config.tasks.train.items()
    ]
    opener = Opener(conversations.processor, config.tasks)
    return PromptLoader(sources, config.seed, world.rank, world.size, open=opener)


def build_held_out(config: SFTConfig, conversations: Conversations) -> list[HeldOut]:
    """The conversations whose loss is measured and never learned from."""
    if not (config.evaluate.before_and_after or config.evaluate.every_steps):
        return []
    most = config.evaluate.limit or None
    return [
        HeldOut(load_task(name).name, prompts_of(config, name, "evaluate", conversations)[:most], weight)
        for name, weight in (config.tasks.evaluate or config.tasks.train).items()
    ]


def prompts_of(config: SFTConfig, name: str, split: Split, conversations: Conversations) -> list[Prompt]:
    """The conversations of one split of a task."""
    task = load_task(name)
    records = task.load(split, config.tasks, config.data, config.seed if split == "train" else 0)
    prompts, kept = conversations.prompts(records, task.gold)
    longest = max(len(p.target.token_ids) for p in prompts)
    log.info(
        "%s, %s: %d conversations, longest answer %d tokens; skipped %d long and %d broken ones, cut %d",
        task.name, split, len(prompts), longest, kept.too_long, kept.broken, kept.truncated,
    )  # fmt: skip
    return prompts


def build_memory_plan(model: Trainable, device: torch.device) -> MemoryPlan:
    """Who is in device memory in which phase: held-out losses need no optimizer."""
    memory_plan = MemoryPlan(lambda: device_bytes(device), lambda: release_memory(device))
    parts = model.parts()
    memory_plan.add("weights", parts["weights"], Phase.TRAIN, Phase.SCORE)
    memory_plan.add("optimizer", parts["optimizer"], Phase.TRAIN)
    return memory_plan


def finish(trainer: SFTTrainer, stack: contextlib.ExitStack) -> None:
    """Summary, picture and report of a finished run."""
    stack.close()  # the live picture ends, files are complete
    run, config = trainer.run, trainer.config
    summary = {
        "seconds": round(trainer.seconds, 1),
        "steps": trainer.done,
        "seed": config.seed,
        "model": config.model.path,
        "held_out_nll": {k: v["mean"] for k, v in trainer.losses.items() if k in ("before", "after")},
        "held_out_nll_by_task": {k: v for k, v in trainer.losses.items() if k in ("before", "after")},
    }
    write_text(run / "summary.json", json.dumps(summary, indent=2))
    draw_curves(run)
    report_losses(summary, run)
