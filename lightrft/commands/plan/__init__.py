"""What a run would need on so many devices, found without weights, data or devices: `lightrft plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.requirements import build_for
from lightrft.build.judges import judging_models
from lightrft.build.models import check_models, critic_source, teacher_model
from lightrft.build.process import shared
from lightrft.build.tables import SHARED, check_optimizer, check_processes, footprint
from lightrft.commands.plan.memory import (
    SHOWN,
    Item,
    Lengths,
    Models,
    activations,
    batch_tokens,
    engine_of,
    items,
    largest_batch,
    left_by_sampling,
    passes,
    scoring,
    sums,
)
from lightrft.commands.plan.shape import Shape
from lightrft.commands.plan.work import Work, switches, work
from lightrft.config import Config, check_backend
from lightrft.config.plan import Hardware, Rates
from lightrft.engines.footprint import EngineFootprint
from lightrft.models.lora import starts_as_base
from lightrft.models.source import Source
from lightrft.parallel.team import check_team_size
from lightrft.parallel.world import World
from lightrft.strategy.footprint import EXACT, Footprint
from lightrft.strategy.memory import Phase
from lightrft.utils.imports import resolve

__all__ = ["Hardware", "Lengths", "Plan", "Rates", "plan"]

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """Everything `lightrft plan` shows."""

    config: Config
    hardware: Hardware
    lengths: Lengths
    models: Models
    algorithm: Algorithm

    @property
    def on_cpu(self) -> bool:
        """Whether the devices are processes on a CPU."""
        return self.config.strategy.device == "cpu"

    @cached_property
    def resident(self) -> list[Item]:
        """What takes memory however long a batch is."""
        return items(
            self.config,
            self.models,
            self.lengths,
            self.hardware.devices,
            on_cpu=self.on_cpu,
            device_bytes=int(self.hardware.memory_gib * GIB),
            measures=self.algorithm.needs_optimal_values,
        )

    @cached_property
    def actor_footprint(self) -> Footprint:
        """What the backend holds of the actor."""
        return footprint(self.config.strategy, self.models.actor, self.hardware.devices)

    @cached_property
    def engine(self) -> EngineFootprint:
        """What the engine holds."""
        return engine_of(
            self.config,
            self.models,
            self.lengths,
            self.hardware.devices,
            on_cpu=self.on_cpu,
            device_bytes=int(self.hardware.memory_gib * GIB),
        )

    @property
    def tokens(self) -> int:
        """Tokens of the largest batch."""
        return batch_tokens(
            self.config, self.lengths, self.algorithm.together(self.config.rollout.group_size)
        )

    @cached_property
    def items(self) -> list[Item]:
        """All that takes memory."""
        scores = self.work.score.flops > 0
        return self.resident + passes(self.config, self.models, self.tokens, scores=scores)

    @property
    def sums(self) -> dict[Phase, int]:
        """Bytes of a device in each phase."""
        return sums(self.items)

    @property
    def usable(self) -> int:
        """Bytes of a device that may be filled."""
        return self.hardware.usable

    @property
    def largest_batch(self) -> int:
        """Most tokens of a batch that fit; 0 if the rest is too much already."""
        room = {phase: self.usable - count for phase, count in sums(self.resident).items()}
        shapes = [m for m in (self.models.actor, self.models.critic) if m is not None]
        found = [largest_batch(room[Phase.TRAIN], partial(activations, self.config, s)) for s in shapes]
        found.append(largest_batch(room[Phase.SCORE], partial(scoring, self.config, self.models.actor)))
        return min(found)

    @cached_property
    def work(self) -> Work:
        """What a step computes, sends and takes."""
        hardware = self.hardware
        found = work(
            self.config,
            self.algorithm,
            self.models,
            self.lengths,
            hardware.devices,
            hardware.rates,
            hardware.per_node,
            self.engine,
        )
        return replace(found, switches=switches(self.resident, hardware.rates))

    @property
    def least(self) -> int:
        """Tokens of the smallest batch that a run can do with."""
        return self.lengths.prompt + self.lengths.answer

    @property
    def processes(self) -> int:
        """Processes of one machine."""
        return min(self.hardware.devices, self.hardware.per_node)

    @property
    def host(self) -> list[Item]:
        """What a process keeps in host memory, where that is known."""
        rollout = self.config.rollout
        answers = ceil(rollout.prompts_per_step * rollout.group_size / self.hardware.devices)
        size = EXACT * (left_by_sampling(rollout) + 1) * self.lengths.answer * answers
        told = Item("what tokens were sampled among", size, SHOWN)
        return [told] if rollout.keep_sampling_mask else []

    @cached_property
    def problems(self) -> list[str]:
        """What would stop the run, or waste it."""
        return [*self.refused, *_wasted(self), *self.too_large]

    @property
    def refused(self) -> list[str]:
        """What the run itself would refuse."""
        return _refused(self.config, self.algorithm, self.hardware.devices)

    @property
    def too_large(self) -> list[str]:
        """What does not fit a device, with the cure."""
        return _too_large(self)


def plan(config: Config, hardware: Hardware, lengths: Lengths) -> Plan:
    """The plan of a run. ValueError for a model that is not there."""
    algorithm = build_for(config, resolve)
    return Plan(config, hardware, lengths, models_of(config, algorithm), algorithm)


def models_of(config: Config, algorithm: Algorithm) -> Models:
    """The shapes of a run's models, from their config.json alone."""
    critic = (
        Shape(critic_source(config), optimizer=config.critic.optimizer) if algorithm.needs_critic else None
    )
    apart = algorithm.needs_reference and not starts_as_base(config.model.lora)
    reference = Shape(Source(config.model, learns=False, rounded=True)) if apart else None
    teacher = Shape(Source(teacher_model(config), learns=False)) if algorithm.needs_teacher else None
    judging, scoring = judging_models(config)
    judge = None if judging is None else Shape(Source(judging, learns=False))
    rated = {name: Shape(Source(model, learns=False)) for name, model in scoring.items()}
    actor = Shape(Source(config.model), optimizer=config.optimizer)
    return Models(actor, critic, reference, teacher, judge, rated)


def _refused(config: Config, algorithm: Algorithm, devices: int) -> list[str]:
    """What the run itself would refuse, by the same checks."""
    strategy, asked = config.strategy, config.rollout.prompts_per_step
    checks: list[Callable[[], None]] = [
        lambda: check_backend(strategy, devices),
        lambda: shared("rollout.prompts_per_step", asked, World(0, devices)),
        lambda: check_processes(strategy, devices),
        lambda: check_optimizer(strategy, config.optimizer),
        *([lambda: check_optimizer(strategy, config.critic.optimizer)] if algorithm.needs_critic else []),
        lambda: check_team_size(devices, strategy.sequence_parallel),
        lambda: check_models(config, algorithm),
    ]
    return refusals(checks)


def refusals(checks: Iterable[Callable[[], object]]) -> list[str]:
    """What those of the checks say that fail."""
    found = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            found.append(str(error))
    return found


def idle(plan: Plan) -> list[str]:
    """Whether devices have nothing to learn from in an update."""
    config, devices = plan.config, plan.hardware.devices
    answers = config.rollout.prompts_per_step * config.rollout.group_size
    if answers / devices / config.update.num_minibatches >= 1:
        return []
    return [
        f"update.num_minibatches={config.update.num_minibatches}: {answers} responses on {devices} devices leave some without any in an "
        "update. Raise rollout.prompts_per_step, or lower update.num_minibatches."
    ]


def _wasted(plan: Plan) -> list[str]:
    config, found = plan.config, idle(plan)
    budget, whole = config.update.tokens_per_micro_batch, plan.least
    if budget < whole:
        found.append(
            f"update.tokens_per_micro_batch={budget}: one prompt with its response can be {whole} tokens, more than the micro-batch; such sequences get a batch of their own. "
            f"Set it to {whole} or more."
        )
    elif plan.largest_batch > 2 * budget and plan.work.micro_batches > 1:
        found.append(
            f"update.tokens_per_micro_batch={budget}: there is room for {plan.largest_batch:,}, and {plan.work.micro_batches} batches an update "
            "are slower than fewer large ones."
        )
    return found


def _too_large(plan: Plan) -> list[str]:
    phase, most = max(plan.sums.items(), key=lambda pair: pair[1])
    if most <= plan.usable:
        return []
    told = f"{phase.value} needs {most / GIB:.1f} GiB of a device, and {plan.usable / GIB:.1f} may be used."
    if plan.largest_batch >= plan.least and phase is Phase.TRAIN:
        return [f"{told} Set update.tokens_per_micro_batch={plan.largest_batch}."]
    return [f"{told} {_cure(plan, phase)}"]


def _cure(plan: Plan, phase: Phase) -> str:
    config, held = plan.config, plan.actor_footprint
    if not held.sharded:
        return f"Share the weights out: strategy.backend={SHARED}, on more devices."
    if phase is Phase.ROLLOUT:
        return f"Set strategy.offload=true, or lower {plan.config.rollout.limit}."
    if not config.model.gradient_checkpointing:
        return "Set model.gradient_checkpointing=true."
    if held.to_host:
        return f"Take more devices, set {held.to_host}=true, or train adapters (layer lora)."
    return "Take more devices, or train adapters (layer lora)."
