"""A run of reinforcement learning from its parts: who gets which. What the parts are is decided elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.requirements import check_remembered
from lightrft.build.process import peak_teraflops
from lightrft.build.waiting import check_correction, check_sampled_at, check_sampling_mask
from lightrft.config import Config, RolloutConfig
from lightrft.datasets.loader import PromptLoader
from lightrft.engines.base import Engine
from lightrft.models.kinds import PolicyKind
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner
from lightrft.runs.capsule import Capsules
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.trainer.asynchronous import Beside
from lightrft.trainer.baseline import Baseline, Greedy
from lightrft.trainer.batching import Batching
from lightrft.trainer.buffer import SAMPLED_AT, SAMPLED_BY, Compared, RolloutBuffer
from lightrft.trainer.capture import Capture
from lightrft.trainer.collect import Collector
from lightrft.trainer.diversity import DiversityWatch
from lightrft.trainer.evaluate import Evaluator
from lightrft.trainer.flight import Flight
from lightrft.trainer.learn import Learner
from lightrft.trainer.optimal_values import OptimalValues, changed_since, measured_with
from lightrft.trainer.rl import RLTrainer
from lightrft.trainer.rollout import needs_old
from lightrft.trainer.run import Journal, Run, no_preparation
from lightrft.trainer.sampler import Sampler
from lightrft.trainer.scaler import RewardScaler
from lightrft.trainer.score import Scorer
from lightrft.trainer.supply import Ahead, Fresh, Partial, Supply
from lightrft.trainer.turns import Turns
from lightrft.utils.interrupt import Interrupt

log = logging.getLogger("lightrft")

VALUES = "values"
"""Part of a checkpoint: what trainer/optimal_values.py has measured."""
NONE, HEAD = "''", "weights/head.weight"
"""A text that is empty, as a setting says it; the head of a critic in a checkpoint."""


@dataclass(frozen=True)
class Models:
    """The models that a step computes with."""

    actor: Trainable
    critic: Trainable | None = None
    reference: Frozen | None = None
    teacher: Frozen | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of a run of reinforcement learning."""

    config: Config
    run: Path
    """Folder of the run."""
    world: World
    device: torch.device
    memory_plan: MemoryPlan
    models: Models
    engine: Engine
    kind: PolicyKind
    prompts: PromptLoader
    judge: RewardRunner
    scaler: RewardScaler
    algorithm: Algorithm
    evaluator: Evaluator
    checkpoints: Checkpoints
    journal: Journal
    started: float = field(default_factory=time.perf_counter)
    turns: Turns | None = None
    """What replies to the policy, where anything does."""
    left: Collection[str] = ()
    """Kinds of groups that wait in the checkpoint to go on from."""
    stack: ExitStack = field(default_factory=ExitStack)
    """What is to be done when the run ends, well or not."""


def assemble(trainer: type[RLTrainer], parts: Parts) -> Run:
    """The run, before its first step."""
    config, world = parts.config, parts.world
    interrupt = Interrupt(world.max)
    sampler = build_sampler(parts, interrupt)
    baseline = build_baseline(parts, sampler)
    values = baseline if isinstance(baseline, OptimalValues) else None
    buffer = RolloutBuffer(
        config.replay,
        world.size,
        cost=parts.scaler.cost,
        compared_with=compared_with(parts.algorithm),
        refill=None if values is None else values.fill,
        needs_squares=parts.algorithm.needs_squares,
        sampled_at={name: getattr(config.rollout, name) for name in (*SAMPLED_AT, *SAMPLED_BY)},
        completed=parts.prompts.completed,
    )
    kind = parts.kind
    batching = build_batching(parts)
    learner = build_learner(parts, batching)
    capsules, journal, watch = Capsules(parts.run, config.log), parts.journal, DiversityWatch()
    made = trainer(
        config=config,
        world=world,
        sampler=sampler,
        collector=build_collector(parts, sampler, buffer, baseline),
        buffer=buffer,
        scorer=build_scorer(parts, batching, interrupt),
        learner=learner,
        capture=Capture(capsules, config, world, learner),
        evaluator=parts.evaluator,
        journal=journal,
        processor=kind.processor,
        watch=watch,
        parts={
            "prompts": parts.prompts,
            "scaler": parts.scaler,
            "learner": learner,
            "capsules": capsules,
            "diversity": watch,
            **({VALUES: values} if values else {}),
        },
        rank_parts={"buffer": buffer},
    )
    return Run(
        command="train",
        steps=config.steps,
        trainer=made,
        journal=journal,
        world=world,
        memory_plan=parts.memory_plan,
        write=kind.write,
        checkpoints=parts.checkpoints,
        evaluates=config.evaluate,
        interrupt=interrupt,
        prepare=values.prepare if values else no_preparation,
        started=parts.started,
        peak_teraflops=peak_teraflops(config.strategy, config.model, parts.device),
    )


def build_learner(parts: Parts, batching: Batching) -> Learner:
    """What teaches the critic and the actor."""
    models = parts.models
    return Learner(
        parts.config,
        parts.memory_plan,
        batching,
        parts.algorithm,
        models.actor,
        models.critic,
        models.reference,
        parts.kind.logprobs,
    )


def build_batching(parts: Parts) -> Batching:
    """How responses are packed; groups that the loss compares stay whole."""
    kind, algorithm = parts.kind, parts.algorithm
    return Batching(
        parts.config.update,
        parts.world,
        parts.device,
        kind.blank(),
        algorithm.whole_groups,
        layout=kind.layout,
        entrywise=algorithm.entrywise,
    )


def build_sampler(parts: Parts, interrupt: Interrupt) -> Sampler:
    """The engine with the actor's weights; between two responses it looks whether the run was asked to stop."""

    def sampled(finished: int, total: int) -> None:
        parts.journal.progress.responses(finished, total)
        parts.world.raise_if_failed()
        interrupt.raise_if_stopped()

    restarts = parts.config.rollout.max_engine_restarts
    return Sampler(
        parts.engine, parts.models.actor, parts.memory_plan, parts.world, restarts=restarts, progress=sampled
    )


def build_supply(parts: Parts, sampler: Sampler, buffer: RolloutBuffer) -> Supply:
    """How responses come to a step: as the settings say, and so that none is lost that a checkpoint holds (`parts.left`)."""
    config = parts.config
    given = (config, sampler, parts.prompts, parts.kind.processor, parts.judge, parts.journal.progress)
    source = Fresh(*given, turns=parts.turns)
    if config.rollout.max_tokens_per_step or "unfinished" in parts.left:
        source = Partial(*given, buffer=buffer)
    if config.rollout.max_staleness:
        return build_beside(parts, source, buffer)
    if config.rollout.overlap_rewards or not {"prefetched", "unanswered"}.isdisjoint(parts.left):
        return Ahead(source, buffer, last=config.steps if config.rollout.overlap_rewards else 0)
    return source


def build_beside(parts: Parts, source: Fresh, buffer: RolloutBuffer) -> Beside:
    """Sampling beside learning: whoever uses the engine waits for it, the timeline shows it, and the end of the run ends it."""

    def ended(flight: Flight) -> None:
        facts = {
            "phase": Phase.ROLLOUT.value,
            "seconds": round(flight.seconds, 4),
            "waited": 0.0,
            "moved": [],
        }
        parts.journal.happened("phase", flight.order.step, **facts, beside=True)

    keeps_all = parts.algorithm.keeps_all_groups
    supply = Beside(source, buffer, last=parts.config.steps, at_once=keeps_all, ended=ended)
    source.sampler.settle = supply.settle
    parts.stack.callback(supply.close)
    return supply


def build_baseline(parts: Parts, sampler: Sampler) -> Baseline | None:
    """What responses are compared with besides their siblings, where the algorithm asks for it."""
    if not parts.algorithm.needs_baseline:
        return None
    turns = parts.turns and parts.turns.apart()
    given = (parts.config, sampler, parts.judge, parts.kind.processor)
    if parts.algorithm.needs_optimal_values:
        return OptimalValues(*given, parts.prompts, parts.journal.progress, turns)
    return Greedy(*given, turns)


def compared_with(algorithm: Algorithm) -> Compared:
    """What responses that wait in a buffer must know of the baseline."""
    if not algorithm.needs_baseline:
        return ""
    return "values" if algorithm.needs_optimal_values else "greedy"


def build_collector(
    parts: Parts, sampler: Sampler, buffer: RolloutBuffer, baseline: Baseline | None
) -> Collector:
    """The part that samples, judges and chooses the groups of a step."""
    return Collector(
        config=parts.config,
        world=parts.world,
        algorithm=parts.algorithm,
        supply=build_supply(parts, sampler, buffer),
        buffer=buffer,
        scaler=parts.scaler,
        prompts=parts.prompts if parts.config.rollout.weighs_prompts else None,
        baseline=baseline,
    )


def build_scorer(parts: Parts, batching: Batching, interrupt: Interrupt) -> Scorer:
    """The part that fills the columns of responses."""
    models = parts.models
    return Scorer(
        config=parts.config,
        world=parts.world,
        memory_plan=parts.memory_plan,
        progress=parts.journal.progress,
        batching=batching,
        actor=models.actor,
        critic=models.critic,
        reference=models.reference,
        teacher=models.teacher,
        scaler=parts.scaler,
        interrupt=interrupt,
        needs_old=needs_old(parts.config, parts.algorithm),
        needs_squares=parts.algorithm.needs_squares,
        logprobs=parts.kind.logprobs,
    )


def left_in(state: Mapping[str, Any] | None) -> set[str]:
    """The kinds of groups that wait in a checkpoint, on any rank."""
    packed = state["ranks"]["buffer"] if state else []
    return {name for rank in packed for name, count in rank["counts"].items() if count}


def checked_left(config: Config, algorithm: Algorithm, state: Mapping[str, Any] | None) -> set[str]:
    """`left_in` a checkpoint that the settings of now can go on from; ValueError if they cannot."""
    left = left_in(state)
    check_remembered(config, algorithm, left)
    check_sampled_at(config, state)
    check_correction(config, algorithm, state)
    check_sampling_mask(config, state)
    check_unfinished(config.rollout, left)
    check_learners(config, algorithm, state)
    check_values(config, algorithm, state)
    return left


def check_unfinished(config: RolloutConfig, left: Collection[str]) -> None:
    """ValueError if responses of a checkpoint, of the kinds in `left`, would go on past a stop text that they have begun."""
    if "unfinished" in left and config.misses_stops:
        raise ValueError(
            f"rollout.engine={config.engine}: the checkpoint holds responses that are to go on, and a text of rollout.stop={config.stop} "
            "that lies across the resume would be missed. Resume with rollout.engine=native, or leave rollout.stop out."
        )


def check_learners(config: Config, algorithm: Algorithm, state: Mapping[str, Any] | None) -> None:
    """ValueError if a critic is asked for that a checkpoint does not have, or has for another cost, so that it could not go on."""
    if state is None or not algorithm.needs_critic:
        return
    if "critic" not in state["models"]:
        raise ValueError(
            f"algorithm.advantage={config.algorithm.advantage} needs a critic, and the checkpoint of step {state['done']} holds none: the run "
            "has learned without one. Resume with the algorithm.advantage of that step, or start a new run with model.path set to a "
            "model of this one."
        )
    scaler, now = state["parts"]["scaler"], config.constraint.cost
    before = scaler.get("constraint.cost", scaler["cost"])
    if before != now:
        raise ValueError(
            f"constraint.cost={now or NONE}: the run has learned with constraint.cost={before or NONE} up to the checkpoint of step "
            f"{state['done']}, and its critic knows the value of that. Resume with constraint.cost={before or NONE}, or start a new run with "
            "model.path set to a model of this one."
        )
    if now and state["models"]["critic"].shapes()[HEAD][0] == 1:
        raise ValueError(
            f"the critic in the checkpoint of step {state['done']} is of an earlier LightRFT, in which it knew the reward less its cost alone; "
            "now it knows both. Start a new run with model.path set to a model of this one."
        )


def check_values(config: Config, algorithm: Algorithm, state: Mapping[str, Any] | None) -> None:
    """ValueError if values of prompts are asked for that a checkpoint does not hold, or that other settings would have made others, and the
    policy is no longer what they are of."""
    if state is None or not state["done"] or not algorithm.needs_optimal_values:
        return
    row, kept = config.algorithm, state["parts"].get(VALUES)
    if kept is None:
        raise ValueError(
            f"algorithm.advantage={row.advantage} needs the values of prompts under the model the run began with, and the checkpoint of step "
            f"{state['done']} holds none. Resume with the algorithm.advantage of that step, or start a new run."
        )
    for name in changed_since(kept, config):
        before, now = (settings.get(name) for settings in (kept["settings"], measured_with(config)))
        raise ValueError(
            f"{name}={now}: the values of prompts were measured with {name}={before} before the first step, and the rewards of new responses "
            f"would be compared with them. Set {name}={before}, or start a new run."
        )
