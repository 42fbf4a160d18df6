"""From an SFTConfig to a run of supervised fine-tuning."""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path

from lightrft.build.memory import build_sft_memory_plan
from lightrft.build.models import check_team
from lightrft.build.process import build_journal, dated, last_state, prepare_process, shared
from lightrft.build.tables import STRATEGIES
from lightrft.build.tasks import evaluated_tasks, records_of, training_tasks
from lightrft.config import SFTConfig
from lightrft.datasets.conversations import Conversations
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Opener
from lightrft.models.base import needed_base
from lightrft.models.load import load_processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.runs.layout import RunFolder
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.tasks.table import Split, Task, load_tasks
from lightrft.trainer.batching import Batching, dummy_answer
from lightrft.trainer.run import Run
from lightrft.trainer.sft import HeldOut, SFTTrainer
from lightrft.types import Prompt
from lightrft.utils.device import pick_device
from lightrft.utils.imports import resolve
from lightrft.utils.interrupt import Interrupt

log = logging.getLogger("lightrft")


def build_run(
    config: SFTConfig, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> Run:
    """All parts of a run. What needs no weights is built first, so that mistakes show at once."""
    prepare_process(config)
    world = World.current(config.strategy.sequence_parallel)
    device = pick_device(config.strategy.device)
    strategy = resolve(STRATEGIES, config.strategy.backend, "strategy backend")(config.strategy, device)
    shared("batch_size", config.batch_size, world)
    processor = dated(load_processor(config.model, config.media), run, world)
    check_team(config.strategy, {"model.path": config.model})
    conversations = Conversations.of(processor, config)
    prompts = build_loader(config, conversations, world)
    held_out = build_held_out(config, conversations)
    steps = config.steps or math.ceil(
        config.epochs * sum(len(source) for source in prompts.sources) / config.batch_size
    )
    checkpoints = Checkpoints(RunFolder(run).checkpoints, config.checkpoint, world)
    state = last_state(run, checkpoints, config, steps) if resume else None
    model = strategy.trainable(Source(config.model), config.optimizer, steps)
    memory_plan = build_sft_memory_plan(model, device)
    journal, interrupt = build_journal(config, steps, run, world, state, stack), Interrupt(world.max)
    batching = Batching(config.update, world, device, dummy_answer(processor.blank()))
    trainer = SFTTrainer(
        config=config,
        world=world,
        memory_plan=memory_plan,
        batching=batching,
        model=model,
        prompts=prompts,
        held_out=held_out,
        journal=journal,
        interrupt=interrupt,
    )
    made = Run(
        command="sft",
        steps=steps,
        trainer=trainer,
        journal=journal,
        world=world,
        memory_plan=memory_plan,
        processor=processor,
        checkpoints=checkpoints,
        evaluates=config.evaluate,
        interrupt=interrupt,
        started=started,
        base=needed_base(config.model),
    )
    if state is not None:
        made.load(state)
    stack.enter_context(journal.progress)
    return made


def build_loader(config: SFTConfig, conversations: Conversations, world: World) -> PromptLoader:
    """The endless draw of training conversations."""
    sources = [
        (prompts_of(config, task, "train", conversations), config.tasks.train[name])
        for name, task in training_tasks(config).items()
    ]
    opener = Opener(conversations.processor, config.tasks)
    return PromptLoader(sources, config.seed, world.rank, world.size, open=opener)


def build_held_out(config: SFTConfig, conversations: Conversations) -> list[HeldOut]:
    """The conversations whose loss is measured and never learned from."""
    most, wanted = config.evaluate.limit or None, evaluated_tasks(config)
    return [
        HeldOut(task.name, prompts_of(config, task, "evaluate", conversations)[:most], wanted[name])
        for name, task in load_tasks(wanted).items()
    ]


def prompts_of(config: SFTConfig, task: Task, split: Split, conversations: Conversations) -> list[Prompt]:
    """The conversations of one split of a task."""
    prompts, kept = conversations.prompts(records_of(config, task, split), task.gold)
    longest = max(len(p.target.token_ids) for p in prompts)
    log.info(
        "%s, %s: %d conversations, longest response %d tokens; skipped %d long and %d broken ones, truncated %d",
        task.name, split, len(prompts), longest, kept.too_long, kept.broken, kept.truncated,
    )  # fmt: skip
    return prompts
