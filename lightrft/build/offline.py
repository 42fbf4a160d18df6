"""From settings to a run that learns from given responses; what differs between its kinds is `Setup`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.build.memory import build_sft_memory_plan
from lightrft.build.models import build_reference, check_reference, check_team
from lightrft.build.process import (
    build_journal,
    build_notifier,
    check_fused,
    checked_base,
    last_state,
    peak_teraflops,
    prepare_process,
    shared,
)
from lightrft.build.tables import STRATEGIES
from lightrft.build.tasks import evaluated_tasks, training_tasks
from lightrft.config import OfflineConfig, command_of
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Opener
from lightrft.engines.base import Engine
from lightrft.models.base import needed_base
from lightrft.models.describe import check_reads_on
from lightrft.models.export import write_folder
from lightrft.models.kinds import Layout, Write
from lightrft.models.source import Source
from lightrft.models.words import dummy_answer, token_layout
from lightrft.parallel.world import World
from lightrft.runs.layout import RunFolder
from lightrft.strategy.base import Frozen, Strategy, Trainable
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.memory import MemoryPlan, Resident
from lightrft.tasks.table import Split, Task, load_tasks
from lightrft.trainer.batching import Batching
from lightrft.trainer.held_out import HeldOutSamples
from lightrft.trainer.offline import HeldOut, Objective, OfflineTrainer
from lightrft.trainer.reference import Judgement, Referee
from lightrft.trainer.run import Run
from lightrft.trainer.sampler import Sampler
from lightrft.types import Prompt, Trajectory
from lightrft.utils.device import pick_device
from lightrft.utils.imports import resolve
from lightrft.utils.interrupt import Interrupt


@dataclass(frozen=True)
class Setup:
    """What one kind of run learns, and from what."""

    processor: Any
    """Processor of a language model, or of a pipeline."""
    source: Source
    objective: Objective
    prompts_of: Callable[[Task, Split], list[Prompt]]
    """The prompts of one split of a task, with their responses."""
    check: Callable[[PromptLoader, Sequence[HeldOut]], None] = lambda _prompts, _held_out: None
    """What is to be said of the data before any weight loads."""
    judgement: Judgement | None = None
    """How responses are compared with the model that the run began with, where they are."""
    opener: Callable[[Prompt], Prompt | None] | None = None
    """What reads the media of a drawn prompt; None: those of the prompt itself."""
    engine: Callable[[Strategy, Trainable], Engine | None] = lambda _strategy, _model: None
    """What samples the model's own responses to held-out prompts, if anything does."""
    sampled_tokens: int = 0
    """Most tokens of such a response."""
    outputs: Sequence[str] = ()
    """Grades that a loss compares responses by: their names in Trajectory.parts."""
    layout: Layout = token_layout
    """What the model reads for some responses."""
    blank: Callable[[], Trajectory] | None = None
    """A response to be computed and not learned from; None: one of a token."""
    residents: Callable[[], Mapping[str, Resident]] = dict
    """What else reads the data on the device, by name: needed where prompts are opened."""
    write: Write | None = None
    """Writes RUN/model; None: as a language model."""

    def __post_init__(self) -> None:
        if self.layout is token_layout:
            check_reads_on(self.source.config)
        if self.judgement is not None:
            check_reference(self.source.config)

    def write_words(self, module: nn.Module, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
        """Writes RUN/model of a language model."""
        write_folder(module, self.processor, weights, folder)


def build_run(
    config: OfflineConfig,
    run: Path,
    stack: contextlib.ExitStack,
    made_of: Callable[[World], Setup],
    *,
    started: float,
    resume: bool = False,
) -> Run:
    """All parts of a run. What needs no weights is built first, so that mistakes show at once."""
    prepare_process(config)
    world, device = World.current(config.strategy.sequence_parallel), pick_device(config.strategy.device)
    told, setup = build_notifier(config, run, world, stack), made_of(world)
    strategy = resolve(STRATEGIES, config.strategy.backend, "strategy backend")(config.strategy, device)
    _check_settings(config, world)
    prompts, held_out = build_loader(config, setup, world), build_held_out(config, setup)
    setup.check(prompts, held_out)
    steps = config.steps or _steps_of_epochs(config, prompts)
    checkpoints = Checkpoints(RunFolder(run).checkpoints, config.checkpoint, world)
    state = last_state(run, checkpoints, config, steps) if resume else None
    model = strategy.trainable(setup.source, config.optimizer, steps)
    reference = build_reference(setup.source, model, strategy) if setup.judgement is not None else None
    engine, readers = setup.engine(strategy, model), setup.residents()
    memory_plan = build_sft_memory_plan(model, device, reference, engine, readers)
    journal, interrupt = build_journal(config, steps, run, world, state, stack, told), Interrupt(world.max)
    batching = build_batching(config, setup, world, device)
    trainer = OfflineTrainer(
        config=config,
        objective=setup.objective,
        world=world,
        memory_plan=memory_plan,
        batching=batching,
        model=model,
        prompts=prompts,
        held_out=held_out,
        journal=journal,
        interrupt=interrupt,
        referee=build_referee(setup, model, reference, batching, interrupt),
        reads_on_device=bool(readers),
        samples=build_samples(config, setup, held_out, engine, model, memory_plan, world),
    )
    made = Run(
        command=command_of(config),
        steps=steps,
        trainer=trainer,
        journal=journal,
        world=world,
        memory_plan=memory_plan,
        write=setup.write or setup.write_words,
        checkpoints=checkpoints,
        evaluates=config.evaluate,
        interrupt=interrupt,
        started=started,
        peak_teraflops=peak_teraflops(config.strategy, config.model, device),
        base=needed_base(config.model, compared=reference is not None, checked=checked_base(state)),
    )
    if state is not None:
        made.load(state)
    stack.enter_context(journal.progress)
    return made


def _check_settings(config: OfflineConfig, world: World) -> None:
    """ValueError for a model that these settings cannot compute, or a batch that the processes cannot share."""
    shared("batch_size", config.batch_size, world)
    models = {"model.path": config.model}
    check_fused(config, models)
    check_team(config.strategy, models)


def _steps_of_epochs(config: OfflineConfig, prompts: PromptLoader) -> int:
    """Steps that see each prompt as often as `epochs` says."""
    return math.ceil(config.epochs * sum(len(source) for source in prompts.sources) / config.batch_size)


def build_batching(config: OfflineConfig, setup: Setup, world: World, device: torch.device) -> Batching:
    """How responses are packed; groups that a loss compares stay whole."""
    blank = setup.blank() if setup.blank is not None else dummy_answer(setup.processor.blank())
    compares = bool(setup.outputs)
    return Batching(config.update, world, device, blank, compares, setup.outputs, setup.layout)


def build_referee(
    setup: Setup, model: Trainable, reference: Frozen | None, batching: Batching, interrupt: Interrupt
) -> Referee | None:
    """The comparison with the reference, if there is one."""
    if setup.judgement is None or reference is None:
        return None
    return Referee(setup.judgement, model, reference, batching, interrupt)


def build_samples(
    config: OfflineConfig,
    setup: Setup,
    held_out: Sequence[HeldOut],
    engine: Engine | None,
    model: Trainable,
    memory_plan: MemoryPlan,
    world: World,
) -> HeldOutSamples | None:
    """What saves held-out responses for people, if some are to be saved."""
    if not held_out or not config.log.held_out_prompts:
        return None
    sampler = None if engine is None else Sampler(engine, model, memory_plan, world)
    return HeldOutSamples(config.log, setup.processor, sampler, setup.sampled_tokens)


def build_loader(config: OfflineConfig, setup: Setup, world: World) -> PromptLoader:
    """The endless draw of training prompts."""
    sources = [
        (setup.prompts_of(task, "train"), config.tasks.train[name])
        for name, task in training_tasks(config).items()
    ]
    opener = setup.opener or Opener(setup.processor, config.tasks)
    return PromptLoader(sources, config.seed, world.rank, world.size, open=opener)


def build_held_out(config: OfflineConfig, setup: Setup) -> list[HeldOut]:
    """The prompts that are measured on and never learned from."""
    most, wanted = config.evaluate.limit or None, evaluated_tasks(config)
    return [
        HeldOut(task.name, setup.prompts_of(task, "evaluate")[:most], wanted[name])
        for name, task in load_tasks(wanted).items()
    ]
