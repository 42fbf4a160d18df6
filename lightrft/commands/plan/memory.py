"""Who holds how much device memory in which phase, without a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lightrft.commands.plan.shape import Shape
from lightrft.config import ZERO, Config, StrategyConfig
from lightrft.engines.cache import ANSWER_PAGE, PROMPT_PAGE
from lightrft.strategy.memory import RESIDENCY, Phase

SHOWN = (Phase.ROLLOUT, Phase.SCORE, Phase.SYNC, Phase.TRAIN)
MOMENTS = 8
"""Bytes of AdamW's two moments of a weight that learns; both are float32, as its gradient is."""
EXACT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Item:
    """Something that takes memory of each device."""

    name: str
    bytes: int
    phases: tuple[Phase, ...]
    """In which it is there."""
    turn: str = ""
    """The model for whose work it is there, where models take turns within a phase: then only one of them counts."""


@dataclass(frozen=True)
class Held:
    """What a backend holds of one model on each device, bytes."""

    weights: int
    optimizer: int = 0
    """Moments, and float32 weights beside those that compute."""
    gradients: int = 0
    met: int = 0
    """Weights of other devices and their gradients, while blocks compute."""
    stay: bool = False
    """Whether the gradients' memory is kept from one update to the next."""


def held(strategy: StrategyConfig, shape: Shape, devices: int, *, learns: bool = True) -> Held:
    """What `strategy.backend` holds of a model. ValueError for a backend of one's own, of which nothing is known."""
    if strategy.backend == "single":
        return _single(shape, learns)
    if strategy.backend == "fsdp":
        return _fsdp(strategy, shape, devices, learns)
    if strategy.backend in ZERO:
        return _zero(strategy, shape, devices, learns)
    raise ValueError(
        f"strategy.backend={strategy.backend}: what it holds is not known. Plan with single, fsdp, zero1, zero2 or zero3."
    )


def _single(shape: Shape, learns: bool) -> Held:
    weights, learned = shape.width * shape.weights, shape.learned if learns else 0
    masters = EXACT * learned if shape.width < EXACT else 0
    return Held(weights, MOMENTS * learned + masters, EXACT * learned)


def _fsdp(strategy: StrategyConfig, shape: Shape, devices: int, learns: bool) -> Held:
    """Weights that learn are float32; embeddings and head stay whole from the forward to the backward pass."""
    pieces = devices // strategy.fsdp.replicas
    learned = shape.learned if learns else 0
    weights = (EXACT * learned + shape.width * (shape.weights - learned)) // pieces
    rest = shape.weights - shape.inside
    whole = shape.inside if not strategy.fsdp.reshard_after_forward else 2 * shape.largest_block
    met = shape.width * (rest + whole)
    if (
        learned
    ):  # those of the rest are summed last, from a float32 copy; a block's are summed while the next computes
        share = learned / shape.weights
        met += int(share * max((shape.width + EXACT) * rest, 2 * (shape.width + EXACT) * shape.largest_block))
    found = Held(weights, MOMENTS * learned // pieces, EXACT * learned // pieces, met)
    return replace(found, weights=0, optimizer=0, gradients=0) if strategy.fsdp.offload else found


def zero_share(
    stage: int, devices: int, *, weights: float, gradients: float, optimizer: float
) -> tuple[float, float, float]:
    """What a device holds of each: stage 1 shares the optimizer out, 2 the gradients too, 3 the weights as well.

    Rajbhandari et al. 2020 (https://arxiv.org/abs/1910.02054), figure 1.
    """
    return (
        weights / (devices if stage == 3 else 1),
        gradients / (devices if stage > 1 else 1),
        optimizer / devices,
    )


def _zero(strategy: StrategyConfig, shape: Shape, devices: int, learns: bool) -> Held:
    """DeepSpeed keeps a float32 copy of its piece of the weights whatever the model computes in."""
    options, stage = strategy.deepspeed, int(strategy.backend[-1])
    learned = shape.learned if learns else 0
    weights, gradients, optimizer = map(
        int,
        zero_share(
            stage,
            devices,
            weights=shape.width * shape.weights,
            gradients=EXACT * learned,
            optimizer=(EXACT + MOMENTS) * learned,
        ),
    )
    piece, met = EXACT * learned // devices, 0
    gradients += piece  # for its step: those of its piece once more
    if stage > 1:
        gradients += 2 * min(options.bucket_mib * 2**20, EXACT * learned)
    if stage == 3:
        met = shape.width * min(shape.weights, max(options.max_live_parameters, 2 * shape.largest_block))
        if learned:  # a block's gradients before they are summed, and weights that are fetched ahead
            met += (shape.width + EXACT) * shape.largest_block
            met += min(options.bucket_mib * 2**20, shape.width * shape.weights)
    if options.offload_optimizer:
        optimizer, gradients = 0, gradients - piece
    if options.offload_param:
        weights = 0
    return Held(weights, optimizer, gradients if learns else 0, met, stay=stage == 3)


def frees(strategy: StrategyConfig, on_cpu: bool) -> bool:
    """Whether residents that a phase does not need are moved away."""
    return strategy.offload and not on_cpu and strategy.backend not in ZERO


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
    reward_model: Shape | None = None


@dataclass(frozen=True)
class Lengths:
    """Tokens of a question and of an answer."""

    prompt: int
    answer: int


def shards(strategy: StrategyConfig) -> bool:
    """Whether a device has pieces of weights only, so that an engine in it has weights of its own."""
    return strategy.backend in ("fsdp", "zero3")


def items(
    config: Config, models: Models, lengths: Lengths, devices: int, *, on_cpu: bool, device_bytes: int
) -> list[Item]:
    """Everything that takes memory of a device of `device_bytes`, but for activations (`activations`)."""
    strategy, found = config.strategy, list[Item]()
    moves, native = frees(strategy, on_cpu), config.rollout.engine == "native"
    own = shards(strategy) or not native  # an engine besides the native one has weights of its own
    train = (Phase.TRAIN,)

    def resident(name: str, size: int) -> None:
        needed = (*RESIDENCY[name], *([Phase.ROLLOUT] if name == "actor weights" and not own else []))
        found.append(
            Item(name, size, needed if moves or name.startswith(("engine", "judge cache")) else SHOWN)
        )

    for name, shape in (("actor", models.actor), ("critic", models.critic)):
        if shape is not None:
            part = held(strategy, shape, devices)
            resident(f"{name} weights", part.weights)
            resident(f"{name} optimizer", part.optimizer)
            when, turn = (SHOWN, "") if part.stay else (train, name)
            found.append(Item(f"{name} gradients", part.gradients, when, turn))
            found.append(Item(f"{name}, gathered to compute", part.met, train, name))
    for name, shape in (("reference", models.reference), ("teacher", models.teacher)):
        if shape is not None:
            part = held(strategy, shape, devices, learns=False)
            resident(f"{name} weights", part.weights)
            found.append(Item(f"{name}, gathered to compute", part.met, (Phase.SCORE,), name))
    if models.judge is not None:  # both are whole on every device
        resident("judge weights", models.judge.width * models.judge.plain)
        judged = Lengths(lengths.prompt + lengths.answer, config.judge.max_tokens)
        resident("judge cache", cache(config, models.judge, judged, devices))
    if models.reward_model is not None:
        resident("reward model weights", models.reward_model.width * models.reward_model.body)
    actor = models.actor
    if native and own:
        resident("engine weights", actor.width * actor.plain)
    if native:
        resident("engine cache", cache(config, actor, lengths, devices))
        if on_cpu and config.rollout.native.pack_weights:
            copies = actor.linears if actor.learned == actor.weights else actor.plain
            found.append(Item("engine's copy in another layout", actor.width * copies, (Phase.ROLLOUT,)))
    if not native:
        weights, room = foreign(config, actor, on_cpu=on_cpu, device_bytes=device_bytes)
        resident("engine weights", weights)
        resident("engine cache", room)
    if config.model.lora.rank and not own:
        found.append(Item("adapters folded in", actor.width * actor.inside, (Phase.ROLLOUT, Phase.SYNC)))
    return [item for item in found if item.bytes]


def foreign(config: Config, shape: Shape, *, on_cpu: bool, device_bytes: int) -> tuple[int, int]:
    """Bytes of weights and of cache of an engine that is not ours; it takes all that it may. One of a user's is taken to have a
    copy of the weights."""
    roll, weights = config.rollout, shape.width * shape.plain
    if roll.engine == "vllm_server":  # on other devices
        return 0, 0
    if roll.engine == "vllm":
        weights //= roll.vllm.tensor_parallel_size
        room = (
            roll.vllm.cache_gib * 2**30
            if on_cpu
            else roll.vllm.gpu_memory_utilization * device_bytes - weights
        )
    elif roll.engine == "sglang":
        tokens = roll.sglang.max_total_tokens * shape.cached * 2 * shape.width
        room = tokens if on_cpu else roll.sglang.mem_fraction_static * device_bytes - weights
    elif roll.engine == "lmdeploy":
        room = roll.lmdeploy.cache_max_entry_count * (device_bytes - weights)
    else:
        room = 0
    return weights, max(0, int(room))


def cache(config: Config, shape: Shape, lengths: Lengths, devices: int) -> int:
    """Most bytes of the native engine's cache: whole pages of the answers that run at a time and of their questions."""
    roll = config.rollout
    asked = -(-roll.prompts_per_step // devices)
    running = min(asked * roll.group_size, roll.native.max_sequences)
    questions = -(-running // roll.group_size)
    tokens = running * _pages(lengths.answer, ANSWER_PAGE) + questions * _pages(lengths.prompt, PROMPT_PAGE)
    return tokens * shape.cached * (EXACT + shape.width)  # keys are kept in float32


def _pages(tokens: int, page: int) -> int:
    return -(-tokens // page) * page


def activations(config: Config, shape: Shape, tokens: int) -> int:
    """Bytes of a training pass over so many tokens: what the forward pass keeps, one block at work, and the logits of a chunk."""
    own = -(-tokens // config.strategy.sequence_parallel)
    recomputed = shape.working if config.model.gradient_checkpointing else 0.0
    states = 3 * EXACT * shape.hidden  # in float32 for the head: states, their gradient, and a block's
    chunk = 2 * EXACT * min(config.update.logits_per_chunk, own * shape.head // shape.hidden)
    return int(own * (shape.kept + recomputed + states)) + chunk


def scoring(config: Config, shape: Shape, tokens: int) -> int:
    """The same of a pass without gradients: one block at work and the logits of a chunk."""
    own = -(-tokens // config.strategy.sequence_parallel)
    chunk = 2 * EXACT * min(config.update.logits_per_chunk, own * shape.head // shape.hidden)
    return int(own * (shape.working + EXACT * shape.hidden)) + chunk


def batch_tokens(config: Config, lengths: Lengths) -> int:
    """Most tokens in one pass: the budget, or a single question with its answer where that is longer."""
    return max(config.update.tokens_per_micro_batch, lengths.prompt + lengths.answer)


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
