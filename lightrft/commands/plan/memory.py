"""The device memory that each part takes in each phase, worked out without a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from lightrft.build.tables import engine_footprint, footprint
from lightrft.commands.plan.shape import Shape
from lightrft.config import Config, OfflineConfig, RolloutConfig, StrategyConfig
from lightrft.engines.footprint import Demand, EngineFootprint, paged_cache
from lightrft.models.products import logits_at_once
from lightrft.strategy.footprint import EXACT, Footprint
from lightrft.strategy.memory import RESIDENCY, Phase, kind_of

WHOLE = 8
"""Bytes of an int64."""
FEW_LEFT = 64
"""Tokens that top-p or min-p leave of a distribution, taken to be so many: in the mean over the tokens of a trained model it is fewer."""
SHOWN = (Phase.ROLLOUT, Phase.SCORE, Phase.SYNC, Phase.TRAIN)


@dataclass(frozen=True)
class Item:
    """Something that takes memory of each device."""

    name: str
    bytes: int
    phases: tuple[Phase, ...]
    """In which it is there."""
    turn: str = ""
    """The model for whose work it is there, where models take turns within a phase: then only one of them counts."""
    copied: bool = False
    """Whether it waits in host memory meanwhile, and is not made anew."""


@dataclass(frozen=True)
class Models:
    """The shapes of all models of a run."""

    actor: Shape
    critic: Shape | None = None
    reference: Shape | None = None
    """None too where it is the actor without its adapters."""
    teacher: Shape | None = None
    judge: Shape | None = None
    """None too where the policy judges, or a server."""
    reward_models: Mapping[str, Shape] = field(default_factory=dict)
    """By their names in the memory table."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a response."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class Residents:
    """Collects what takes memory, in the phases of the table that a run obeys."""

    found: list[Item]
    moves: bool
    """Whether residents that a phase does not need are moved away."""
    actor_samples: bool
    """Whether the engine samples with the actor's weights."""

    def add(self, name: str, size: int, told: str = "") -> None:
        """A resident by its name in RESIDENCY, with what is `told` behind it; what belongs to an engine is let go of wherever it runs."""
        sampled = name == "actor weights" and self.actor_samples
        needed = (*RESIDENCY[kind_of(name)], *([Phase.ROLLOUT] if sampled else []))
        let_go = name.startswith(("engine", "judge cache"))
        stays = not self.moves and not let_go
        copied = self.moves and not let_go
        self.found.append(Item(name + told, size, SHOWN if stays else needed, copied=copied))

    def learner(self, name: str, part: Footprint, told: str) -> None:
        """A model that learns: its residents, and what comes and goes in phase train. `told`: of its optimizer's bytes."""
        self.add(f"{name} weights", part.weights)
        self.add(f"{name} optimizer", part.optimizer, told)
        when, turn = (SHOWN, "") if part.gradients_stay else ((Phase.TRAIN,), name)
        self.found.append(Item(f"{name} gradients", part.gradients, when, turn))
        self.found.append(Item(f"{name}, gathered to compute", part.gathered, (Phase.TRAIN,), name))

    def frozen(self, name: str, part: Footprint) -> None:
        """A model that only computes."""
        self.add(f"{name} weights", part.weights)
        self.found.append(Item(f"{name}, gathered to compute", part.gathered, (Phase.SCORE,), name))


def moves(strategy: StrategyConfig, part: Footprint, *, on_cpu: bool) -> bool:
    """Whether residents that a phase does not need are moved away."""
    return strategy.offload and not on_cpu and part.moves


def engine_of(
    config: Config,
    models: Models,
    lengths: Lengths,
    devices: int,
    *,
    on_cpu: bool,
    device_bytes: int,
    rollout: RolloutConfig | None = None,
) -> EngineFootprint:
    """What the engine of a run holds on a device of `device_bytes`; `rollout`: for another one than a step's."""
    sharded = footprint(config.strategy, models.actor, devices).sharded
    demand = Demand(lengths.prompt, lengths.answer, devices, on_cpu, device_bytes, sharded)
    return engine_footprint(rollout or config.rollout, models.actor, demand)


def measuring(config: Config) -> RolloutConfig:
    """What samples for the values of prompts before the first step (algorithm.advantage=optimal_value): as a step, with
    algorithm.value_samples responses to each of as many prompts, which no update divides."""
    return replace(config.rollout, group_size=config.algorithm.value_samples)


def items(
    config: Config,
    models: Models,
    lengths: Lengths,
    devices: int,
    *,
    on_cpu: bool,
    device_bytes: int,
    measures: bool = False,
) -> list[Item]:
    """Everything that takes memory of a device of `device_bytes`, but for activations (`passes`); `measures`: the engine's cache is that of
    the larger rollout, a step's or that of the values before the first (`measuring`)."""
    part_of = partial(footprint, config.strategy, processes=devices)
    actor = models.actor
    held_by = partial(
        engine_of,
        models=models,
        lengths=lengths,
        devices=devices,
        on_cpu=on_cpu,
        device_bytes=device_bytes,
    )
    engine = held_by(config)
    cache = max(engine.cache, held_by(config, rollout=measuring(config)).cache) if measures else engine.cache
    may_move = moves(config.strategy, part_of(actor), on_cpu=on_cpu)
    held = Residents([], may_move, engine.shares_weights)
    for name, shape in (("actor", actor), ("critic", models.critic)):
        if shape is not None:
            held.learner(name, part_of(shape), shape.optimizer_told)
    for name, shape in (("reference", models.reference), ("teacher", models.teacher)):
        if shape is not None:
            held.frozen(name, part_of(shape, learns=False))
    if models.judge is not None:  # both are whole on every device
        held.add("judge weights", models.judge.width * models.judge.plain)
        judged = Demand(
            lengths.prompt + lengths.answer, config.judge.max_tokens, devices, on_cpu, device_bytes
        )
        held.add("judge cache", paged_cache(config.rollout, models.judge, judged))
    for name, shape in models.reward_models.items():
        held.add(name, shape.width * shape.body)
    held.add("engine weights", engine.weights)
    held.add("engine cache", cache)
    held.found.append(Item("engine's copy in another layout", engine.packed, (Phase.ROLLOUT,)))
    if config.model.lora.rank and engine.shares_weights:
        folded = Item("adapters folded in", actor.width * actor.inside, (Phase.ROLLOUT, Phase.SYNC))
        held.found.append(folded)
    return [item for item in held.found if item.bytes]


def passes(
    config: Config, models: Models, tokens: int, *, scores: bool, measured: int | None = None
) -> list[Item]:
    """What passes over `tokens` take beside the residents; `measured`: bytes of the actor's, where they are known."""
    found = []
    for name, shape in (("actor", models.actor), ("critic", models.critic)):
        if shape is not None:
            known = measured if name == "actor" else None
            size = activations(config, shape, tokens) if known is None else known
            found.append(Item(f"{name}'s activations, {tokens:,} tokens", size, (Phase.TRAIN,), name))
    if scores:
        without = scoring(config, models.actor, tokens)
        found.append(Item("activations, no gradient", without, (Phase.SCORE,)))
    return found


def activations(config: Config | OfflineConfig, shape: Shape, tokens: int) -> int:
    """Bytes of a training pass over so many tokens: what the forward pass keeps, one block at work, and the logits of a chunk."""
    own = -(-tokens // config.strategy.sequence_parallel)
    recomputed = shape.working if config.model.gradient_checkpointing else 0.0
    states = 3 * EXACT * shape.hidden  # in float32 for the head: states, their gradient, and a block's
    chunk = _logit(config) * min(_chunk(config), own * shape.operations.head // shape.hidden)
    fixed = chunk + shape.made_whole + _supports(config, tokens)
    return int(own * (shape.kept + recomputed + states)) + fixed


def scoring(config: Config | OfflineConfig, shape: Shape, tokens: int) -> int:
    """Bytes that a pass without gradients takes: one block at work and the logits of a chunk."""
    own = -(-tokens // config.strategy.sequence_parallel)
    chunk = _logit(config) * min(_chunk(config), own * shape.operations.head // shape.hidden)
    fixed = chunk + shape.made_whole + _supports(config, tokens)
    return int(own * (shape.working + EXACT * shape.hidden)) + fixed


def _logit(config: Config | OfflineConfig) -> int:
    """Bytes of a logit of a chunk: itself and its gradient or its power, and whether it was left out of sampling."""
    kept = isinstance(config, Config) and config.rollout.keep_sampling_mask
    return 2 * EXACT + kept


def _supports(config: Config | OfflineConfig, tokens: int) -> int:
    """Bytes of what `tokens`, as if all were sampled, were drawn among: for each id the place of its token and itself, which a block of logits
    copies to look for its own (models/supports.py)."""
    return (4 * WHOLE + 1) * tokens * left_by_sampling(config.rollout) if isinstance(config, Config) else 0


def left_by_sampling(rollout: RolloutConfig) -> int:
    """Ids that are kept for each sampled token (rollout.keep_sampling_mask), all those of top-k, and of top-p and min-p `FEW_LEFT`."""
    if not rollout.keep_sampling_mask:
        return 0
    few = FEW_LEFT if rollout.top_p < 1 or rollout.min_p else 0
    return min(filter(None, (rollout.top_k, few)), default=0)


def _chunk(config: Config | OfflineConfig) -> int:
    """Logits that exist at once."""
    return logits_at_once(config.update.logits_per_chunk, on_cpu=config.strategy.device == "cpu")


def batch_tokens(config: Config, lengths: Lengths, together: int) -> int:
    """Most tokens in one pass: the budget, or a prompt with the `together` responses that no batch divides where that is longer."""
    prompts = 1 if config.update.share_prompts else together
    return max(config.update.tokens_per_micro_batch, prompts * lengths.prompt + together * lengths.answer)


def sums(found: list[Item]) -> dict[Phase, int]:
    """Bytes by phase: what stays, and the most that one of those who take turns adds."""
    return {phase: _sum([item for item in found if phase in item.phases]) for phase in SHOWN}


def _sum(found: list[Item]) -> int:
    by_turn: dict[str, int] = {}
    for item in found:
        by_turn[item.turn] = by_turn.get(item.turn, 0) + item.bytes
    return by_turn.pop("", 0) + max(by_turn.values(), default=0)


def largest_batch(room: int, of: Callable[[int], int]) -> int:
    """Most tokens whose activations `of(tokens)` fit into `room` bytes; 0 if none do."""
    if of(1) > room:
        return 0
    low, high = 1, 2
    while of(high) <= room and high < 2**30:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle) <= room else (low, middle)
    return low
