"""From a Config to a run of reinforcement learning."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import torch

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.requirements import build_for
from lightrft.build.assemble import Models, Parts, assemble, checked_left
from lightrft.build.data import build_evaluator, build_scaler, build_task_data, check_asked
from lightrft.build.judges import add_judging_models, named_judge
from lightrft.build.kinds import policy_of
from lightrft.build.memory import build_memory_plan
from lightrft.build.models import (
    actor_updates,
    build_critic,
    build_reference,
    build_teacher,
    check_models,
    check_pages,
    check_reference,
    check_teacher,
    engine_module,
    named_models,
)
from lightrft.build.process import (
    build_journal,
    build_notifier,
    check_fused,
    checked_base,
    dated,
    last_state,
    prepare_process,
    shared,
)
from lightrft.build.tables import ENGINES, STRATEGIES, TRAINERS
from lightrft.build.turns import build_turns, check_forks
from lightrft.config import Config
from lightrft.engines.base import MakeEngine
from lightrft.engines.beside import check_beside
from lightrft.engines.external import check_kinds
from lightrft.models.base import needed_base
from lightrft.models.kinds import PolicyKind
from lightrft.parallel.world import World
from lightrft.runs.layout import RunFolder
from lightrft.strategy.base import Strategy
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.trainer.run import Run
from lightrft.utils.device import pick_device
from lightrft.utils.imports import resolve

log = logging.getLogger("lightrft")


def build_run(
    config: Config, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> Run:
    """All parts of a training run. What needs no weights is built first, so that mistakes show at once."""
    prepare_process(config)
    world, device = World.current(config.strategy.sequence_parallel), pick_device(config.strategy.device)
    notifier = build_notifier(config, run, world, stack)
    check_processes(config, world)
    algorithm = build_for(config, resolve)
    trainer_class = resolve(TRAINERS, config.trainer, "trainer")
    make_engine = engine_maker(config, device)
    strategy = resolve(STRATEGIES, config.strategy.backend, "strategy backend")(config.strategy, device)
    kind = policy_of(config)
    processor = dated(kind.processor, run, world)
    turns = build_turns(config, processor, stack)
    check_policy(config, kind, algorithm)
    task_data = build_task_data(config, processor, world)
    stack.enter_context(task_data.judge)
    stack.enter_context(task_data.eval_judge)
    check_kinds(config.rollout.engine, task_data.asked, processor.media, device)
    scaler = build_scaler(config, task_data.judge, world)
    checkpoints = Checkpoints(RunFolder(run).checkpoints, config.checkpoint, world)
    state = last_state(run, checkpoints, config, config.steps) if resume else None
    left = checked_left(config, algorithm, state)

    models = build_models(config, kind, algorithm, strategy)
    engine = make_engine(engine_module(config, kind, strategy, models.actor), processor, config.rollout)
    judging = add_judging_models(config, task_data.judges, engine, processor, device, kind.makes)
    memory_plan = build_memory_plan(vars(models), engine, judging, device, config.rollout.max_staleness > 0)
    journal = build_journal(config, config.steps, run, world, state, stack, notifier)
    evaluator = build_evaluator(config, task_data, processor, turns, run, world)
    parts = Parts(
        config=config,
        run=run,
        world=world,
        device=device,
        memory_plan=memory_plan,
        models=models,
        engine=engine,
        kind=kind,
        prompts=task_data.prompts,
        judge=task_data.judge,
        scaler=scaler,
        algorithm=algorithm,
        evaluator=evaluator,
        checkpoints=checkpoints,
        journal=journal,
        started=started,
        turns=turns,
        left=left,
        stack=stack,
    )
    made = assemble(trainer_class, parts)
    made.base = needed_base(config.model, compared=algorithm.needs_reference, checked=checked_base(state))
    if state is not None:
        made.load(state)
    if world.is_first:
        journal.progress.console.print(memory_plan.table())
    stack.enter_context(journal.progress)
    return made


def engine_maker(config: Config, device: torch.device) -> MakeEngine:
    """What rollout.engine names. ValueError if it cannot sample as rollout.max_staleness asks for."""
    make_engine: MakeEngine = resolve(ENGINES, config.rollout.engine, "rollout engine")
    check_beside(config.rollout, make_engine, device)
    return make_engine


def check_policy(config: Config, kind: PolicyKind, algorithm: Algorithm) -> None:
    """ValueError if its layers cannot be compiled or fused, or its engine cannot read pages, as the settings say, a teacher speaks other tokens,
    a team of processes cannot share the models, or a reward asks for what the policy does not make."""
    check_fused(config, named_models(config, algorithm) | named_judge(config))
    check_pages(config)
    check_teacher(config, kind.processor)
    check_models(config, algorithm)
    check_forks(config, algorithm)
    if algorithm.needs_reference:
        check_reference(config.model)
    check_asked(config, kind)


def build_models(config: Config, kind: PolicyKind, algorithm: Algorithm, strategy: Strategy) -> Models:
    """The models that a step computes with: loads their weights."""
    source = kind.source()
    actor = strategy.trainable(source, config.optimizer, actor_updates(config))
    critic = build_critic(config, algorithm, strategy)
    reference = build_reference(source, actor, strategy) if algorithm.needs_reference else None
    return Models(actor, critic, reference, build_teacher(config, algorithm, strategy))


def check_processes(config: Config, world: World) -> None:
    """ValueError if so many processes cannot share a step's groups, or would take steps that are to be captured."""
    shared("rollout.prompts_per_step", config.rollout.prompts_per_step, world)
    shared("replay.groups_per_step", config.replay.groups_per_step, world)
    asked = {"log.capture_steps": config.log.capture_steps, "log.capture_spikes": config.log.capture_spikes}
    for option, value in asked.items():
        if value and world.size > 1:
            raise ValueError(
                f"{option}={value}: a capsule holds a step of one process, and this run has {world.size}. Leave it out, or "
                "capture the step in a run of one process from the same checkpoint."
            )
