"""What learning from given responses would need of each device: `lightrft plan sft | reward | dpo LAYERS...`. Memory alone, no time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from rich.console import Console

from lightrft.algorithms.policy_preference import POLICY_LOSSES
from lightrft.build.kinds import engine_of
from lightrft.build.models import check_team
from lightrft.build.process import shared
from lightrft.build.reward import bound_loss, build_model
from lightrft.build.sft import check_masked
from lightrft.build.tables import check_optimizer, check_processes, engine_footprint, footprint
from lightrft.build.tasks import evaluated_tasks
from lightrft.commands.plan import GIB, refusals
from lightrft.commands.plan.memory import SHOWN, Item, activations, largest_batch, moves, scoring
from lightrft.commands.plan.memory import sums as summed
from lightrft.commands.plan.report import memory_as_json, memory_table, show_verdict
from lightrft.commands.plan.shape import Shape
from lightrft.config import (
    DPOConfig,
    OfflineConfig,
    RewardTrainingConfig,
    RolloutConfig,
    SFTConfig,
    check_backend,
)
from lightrft.config.plan import Hardware
from lightrft.engines.footprint import Demand, EngineFootprint
from lightrft.models.describe import is_masked
from lightrft.models.lora import starts_as_base
from lightrft.models.source import Source
from lightrft.parallel.team import check_team_size
from lightrft.parallel.world import World
from lightrft.strategy.memory import RESIDENCY, Phase
from lightrft.trainer.offline import OPEN_AT_ONCE
from lightrft.trainer.policy_preferences import PolicyPreferences

BOTH = (Phase.SCORE, Phase.TRAIN)
"""The phases of such a run: held-out data and the reference in score, updates in train."""


@dataclass(frozen=True)
class OfflinePlan:
    """Everything that is shown."""

    config: OfflineConfig
    hardware: Hardware
    model: Shape
    reference: Shape | None
    """None too where it is the model without its adapters."""
    tokens: int
    """Tokens of the largest batch."""
    prompt: int
    """Tokens of the longest prompt."""

    @cached_property
    def engine(self) -> EngineFootprint | None:
        """What samples the model's own responses to held-out prompts holds, where anything does (build/sft.py: build_engine)."""
        config, devices = self.config, self.hardware.devices
        if not isinstance(config, SFTConfig) or not config.log.samples or not evaluated_tasks(config):
            return None
        sharded = footprint(config.strategy, self.model, devices).sharded
        if sharded and not config.log.sample_sharded:
            return None
        at_once = min(config.log.held_out_prompts, OPEN_AT_ONCE * devices)
        rollout = RolloutConfig(engine=engine_of(config.model), prompts_per_step=at_once, group_size=1)
        on_cpu, room = config.strategy.device == "cpu", int(self.hardware.memory_gib * GIB)
        demand = Demand(self.prompt, config.log.sampled_tokens, devices, on_cpu, room, sharded)
        return engine_footprint(rollout, self.model, demand)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run, as columns of the table."""
        return BOTH if self.engine is None else SHOWN

    @cached_property
    def resident(self) -> list[Item]:
        """What takes memory however long a batch is."""
        strategy, devices = self.config.strategy, self.hardware.devices
        part = footprint(strategy, self.model, devices)
        may_move = moves(strategy, part, on_cpu=strategy.device == "cpu")
        learning = (Phase.TRAIN,) if may_move else self.phases
        idle = may_move and self.engine is not None and not self.engine.shares_weights
        learned = tuple(phase for phase in self.phases if not (idle and phase is Phase.ROLLOUT))
        found = [
            Item("weights", part.weights, learned),
            Item(f"optimizer{self.model.optimizer_told}", part.optimizer, learning),
            Item("gradients", part.gradients, self.phases if part.gradients_stay else (Phase.TRAIN,)),
            Item("gathered to compute", part.gathered, BOTH, "model"),
        ]
        if self.engine is not None:
            found += self._sampling(self.engine)
        if self.reference is not None:
            frozen = footprint(strategy, self.reference, devices, learns=False)
            found += [
                Item("reference weights", frozen.weights, (Phase.SCORE,) if may_move else BOTH),
                Item("reference, gathered to compute", frozen.gathered, (Phase.SCORE,), "reference"),
            ]
        return [item for item in found if item.bytes]

    def _sampling(self, engine: EngineFootprint) -> list[Item]:
        """What is there while the model's own responses are sampled."""
        folds = self.config.model.lora.rank and engine.shares_weights
        folded = self.model.width * self.model.inside if folds else 0
        return [
            Item("engine weights", engine.weights, RESIDENCY["engine weights"]),
            Item("engine cache", engine.cache, RESIDENCY["engine cache"]),
            Item("engine's copy in another layout", engine.packed, (Phase.ROLLOUT,)),
            Item("adapters folded in", folded, (Phase.ROLLOUT, Phase.SYNC)),
        ]

    @property
    def items(self) -> list[Item]:
        """All that takes memory."""
        return [
            *self.resident,
            Item(
                f"activations, {self.tokens:,} tokens",
                activations(self.config, self.model, self.tokens),
                (Phase.TRAIN,),
            ),
            Item("activations, no gradient", scoring(self.config, self.model, self.tokens), (Phase.SCORE,)),
        ]

    @property
    def sums(self) -> dict[Phase, int]:
        """Bytes of a device in each phase."""
        found = summed(self.items)
        return {phase: found[phase] for phase in self.phases}

    @property
    def usable(self) -> int:
        """Bytes of a device that may be filled."""
        return self.hardware.usable

    @property
    def largest_batch(self) -> int:
        """Most tokens of a batch that fit; 0 if the rest is too much already."""
        room = {phase: self.usable - count for phase, count in summed(self.resident).items()}
        return min(
            largest_batch(room[Phase.TRAIN], partial(activations, self.config, self.model)),
            largest_batch(room[Phase.SCORE], partial(scoring, self.config, self.model)),
        )

    @property
    def lower(self) -> str:
        """What to lower so that a batch fits."""
        return (
            f"Lower update.tokens_per_micro_batch to {self.largest_batch:,} or less, and max_tokens with it"
        )

    @property
    def sample_less(self) -> str:
        """What to lower so that the model's own responses fit."""
        return "Lower log.held_out_prompts or tasks.max_prompt_tokens, or set log.sampled_tokens=0"

    @cached_property
    def problems(self) -> list[str]:
        """What would stop the run."""
        strategy, devices = self.config.strategy, self.hardware.devices
        checks: list[Callable[[], object]] = [
            lambda: check_backend(strategy, devices),
            lambda: shared("batch_size", self.config.batch_size, World(0, devices)),
            lambda: check_processes(strategy, devices),
            lambda: check_optimizer(strategy, self.config.optimizer),
            lambda: check_team_size(devices, strategy.sequence_parallel),
            lambda: check_team(strategy, {"model.path": self.config.model}),
        ]
        found = refusals(checks)
        most = max(self.sums[phase] for phase in BOTH)
        sampling = max(self.sums.values())
        if most <= self.usable < sampling:
            found.append(
                f"{sampling / GIB:.1f} GiB are needed while held-out responses are sampled and {self.usable / GIB:.1f} are usable. "
                f"{self.sample_less}."
            )
        if most > self.usable:
            larger = "Take more devices and a strategy.backend that shares the model out, or lora"
            cure = self.lower if self.largest_batch else larger
            found.append(f"{most / GIB:.1f} GiB are needed and {self.usable / GIB:.1f} are usable. {cure}.")
        return found


def plan(config: OfflineConfig, hardware: Hardware, prompt_tokens: int, response_tokens: int) -> OfflinePlan:
    """The plan of a run. ValueError for a model that is not there."""
    source, compared, together = learner(config)
    apart = compared and not starts_as_base(config.model.lora)
    tokens = max(
        config.update.tokens_per_micro_batch, _largest(config, prompt_tokens, response_tokens, together)
    )
    reference = Shape(Source(config.model, learns=False, rounded=True)) if apart else None
    model = Shape(source, optimizer=config.optimizer)
    return OfflinePlan(config, hardware, model, reference, tokens, prompt_tokens)


def _largest(config: OfflineConfig, prompt: int, response: int, together: int) -> int:
    """Tokens of what is read in one batch however small the budget is: the responses that a loss compares, or all draws of masks of one."""
    if isinstance(config, SFTConfig) and is_masked(config.model):
        return config.masked.draws * (prompt + max(response, config.masked.canvas))
    return prompt + together * response


def learner(config: OfflineConfig) -> tuple[Source, bool, int]:
    """The model that learns, whether it is compared with what it was, and how many responses are read together at least."""
    if isinstance(config, RewardTrainingConfig):
        return build_model(config)[1], False, 2
    if isinstance(config, DPOConfig):
        objective = PolicyPreferences(config, bound_loss(config, POLICY_LOSSES))
        return Source(config.model), objective.needs_reference, 2 if objective.compares else 1
    check_masked(config)
    return Source(config.model), False, 1


def as_json(found: OfflinePlan) -> dict[str, Any]:
    """Every number: bytes of one device, tokens of a batch."""
    return {
        "model": found.config.model.path,
        "weights": found.model.weights,
        "learned": found.model.learned,
        "backend": found.config.strategy.backend,
        "devices": found.hardware.devices,
        "memory": memory_as_json(found.items, found.sums, found.usable),
        "batch": {"tokens": found.tokens, "largest": found.largest_batch},
        "problems": found.problems,
    }


def show(found: OfflinePlan) -> None:
    """A table on the terminal, and the verdict."""
    console = Console(emoji=False)
    console.print(memory_table(found.config, found.model, found.hardware, found.items, found.sums))
    show_verdict(console, found.problems, found.largest_batch)
