"""What a step computes, sends and takes, from the sizes of models and given peak rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

from lightrft.algorithms.algorithm import Algorithm
from lightrft.build.tables import footprint
from lightrft.commands.plan.memory import Item, Lengths, Models, batch_tokens
from lightrft.commands.plan.shape import Shape
from lightrft.config import Config
from lightrft.config.plan import Rates
from lightrft.engines.footprint import EngineFootprint
from lightrft.strategy.footprint import EXACT, Footprint
from lightrft.strategy.memory import Phase
from lightrft.trainer.rollout import needs_old

ORDER = (Phase.SYNC, Phase.ROLLOUT, Phase.SCORE, Phase.TRAIN)
"""Phases of a step; the next step begins after the last one."""
PROMPTS_VALUED = 1000
"""Training prompts that `Work.values` is of: a plan does not know how many there are."""


@dataclass(frozen=True)
class Amounts:
    """What one device computes, sends and takes in one training step."""

    tokens: float
    """Tokens that the actor reads or samples."""
    flops: float
    sent: float
    """Bytes."""
    seconds: float

    def times(self, count: float, devices: int = 1) -> Amounts:
        """The amounts of so many of these in turn, on so many devices at once."""
        all_of = count * devices
        return Amounts(self.tokens * all_of, self.flops * all_of, self.sent * all_of, self.seconds * count)


@dataclass(frozen=True)
class Work:
    """Computation, traffic and time of one training step, by phase."""

    rollout: Amounts
    score: Amounts
    sync: Amounts
    train: Amounts
    updates: int
    micro_batches: int
    """Micro-batches of a device in each update."""
    switches: Mapping[str, Amounts] = field(default_factory=dict)
    """Phase -> what entering it moves to host memory and back (strategy.offload)."""
    values: Amounts | None = None
    """What all devices together sample once before the first step, for the values of PROMPTS_VALUED training prompts
    (algorithm.advantage=optimal_value)."""

    def phases(self) -> dict[str, Amounts]:
        """Amounts by name of the phase, in the order of a step."""
        return {"sync": self.sync, "rollout": self.rollout, "score": self.score, "train": self.train}

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return sum(part.seconds for part in (*self.phases().values(), *self.switches.values()))


def work(
    config: Config,
    algorithm: Algorithm,
    models: Models,
    lengths: Lengths,
    devices: int,
    rates: Rates,
    per_node: int,
    engine: EngineFootprint,
) -> Work:
    """All responses at full length, as many sampled at a time as the engine states. What is sent while blocks compute is taken to hide behind that, or the other way round."""
    roll, update, actor = config.rollout, config.update, models.actor
    batch = batch_tokens(config, lengths, algorithm.together(roll.group_size))
    products = 1e12 * rates.efficiency * rates.teraflops
    questions = roll.prompts_per_step / devices
    answers = questions * roll.group_size
    read = (questions if update.share_prompts else answers) * lengths.prompt + answers * lengths.answer

    sampled = partial(sampling, actor, lengths, rates=rates, engine=engine)
    rollout, values = sampled(questions, roll.group_size), None
    if algorithm.needs_optimal_values:  # as many prompts at a time as in a step
        each = sampled(questions, config.algorithm.value_samples)
        values = each.times(PROMPTS_VALUED / roll.prompts_per_step, devices)

    passes = _scoring(config, algorithm, models)
    asked = questions if update.share_prompts else answers
    judged = sum(forward_flops(model, lengths, asked, answers) for model in passes)
    gathered = sum(gathers(config, model, ceil(read / batch), devices) for model in passes)
    held = footprint(config.strategy, actor, devices)
    sending = partial(sending_seconds, held, rates, devices, per_node)

    score = Amounts(read * len(passes), judged, gathered, max(judged / products, sending(gathered)))

    updates = update.epochs * update.num_minibatches
    micro_batches = max(1, ceil(read / update.num_minibatches / batch))
    recomputed = 1 / config.model.checkpoint_every if config.model.gradient_checkpointing else 0
    times = 3 + recomputed  # a backward pass is two forward passes
    learning = [actor] + ([models.critic] if models.critic is not None else [])
    learned = update.epochs * times * sum(forward_flops(m, lengths, asked, answers) for m in learning)
    inside, among = (
        updates * sum(column)
        for column in zip(*(traffic(config, m, micro_batches, devices) for m in learning), strict=True)
    )
    train = Amounts(
        read * update.epochs, learned, inside + among, max(learned / products, sending(inside, among))
    )

    group = devices // held.copies
    pushed = actor.width * actor.plain * (group - 1) / group if held.sharded else 0.0
    sync = Amounts(0.0, 0.0, pushed, sending(pushed))
    return Work(rollout, score, sync, train, updates, micro_batches, values=values)


def sampling(
    actor: Shape, lengths: Lengths, questions: float, group: int, *, rates: Rates, engine: EngineFootprint
) -> Amounts:
    """What a device takes to sample `group` responses to each of so many questions, as many at a time as the engine states."""
    answers = questions * group
    running = answers if engine.most_running is None else min(answers, engine.most_running)
    drawn = forward_flops(actor, lengths, questions, answers)
    seen = lengths.prompt + lengths.answer / 2
    pair = 2 * actor.width if engine.pair is None else engine.pair
    each = actor.width * actor.plain + running * seen * actor.cached * pair
    decoding = (
        lengths.answer * ceil(answers / max(running, 1)) * each / (1e9 * rates.efficiency * rates.memory)
    )
    seconds = max(drawn / (1e12 * rates.efficiency * rates.teraflops), decoding)
    return Amounts(answers * lengths.answer, drawn, 0.0, seconds)


def switches(items: Sequence[Item], rates: Rates) -> dict[str, Amounts]:
    """Phase -> what a device copies to host memory and back when it enters that after the phase before it in a step; none where nothing is.

    Seconds are those of one direction after the other, as under FSDP; in one process on CUDA both go at once (strategy/twins.py).
    """
    found = {}
    for before, phase in zip((Phase.TRAIN, *ORDER), ORDER, strict=False):
        copied = sum(i.bytes for i in items if i.copied and (before in i.phases) != (phase in i.phases))
        if copied:
            seconds = copied / (1e9 * rates.efficiency * rates.host)
            found[phase.value] = Amounts(0.0, 0.0, float(copied), seconds)
    return found


def sending_seconds(
    held: Footprint, rates: Rates, devices: int, per_node: int, inside: float, among: float = 0.0
) -> float:
    """Seconds for bytes to the devices that share a copy of the model, and to those of other copies."""
    return inside / rates.between(devices // held.copies, per_node) + among / rates.between(devices, per_node)


def _scoring(config: Config, algorithm: Algorithm, models: Models) -> list[Shape]:
    """The models that read all responses before the update."""
    found: list[Shape] = [models.actor] if needs_old(config, algorithm) else []
    found += [m for m in (models.reference, models.teacher, models.critic) if m is not None]
    if algorithm.needs_reference and models.reference is None:
        found.append(models.actor)  # without its adapters
    return found


def forward_flops(shape: Shape, lengths: Lengths, questions: float, answers: float) -> float:
    """Operations of a forward pass: two for each weight that a token meets, and attention to what came before it.

    Only places that predict a token of a response meet the head. Sampling responses takes as many: each prompt is read once.
    """
    prompt, answer = lengths.prompt, lengths.answer
    tokens = questions * prompt + answers * answer
    scores = questions * prompt**2 / 2 + answers * (answer * prompt + answer**2 / 2)
    return shape.operations.forward(tokens, answers * answer, scores)


def traffic(config: Config, shape: Shape, micro_batches: int, devices: int) -> tuple[float, float]:
    """Bytes that a device sends in one update of a model: among those that share a copy of it, and to the other copies."""
    held = footprint(config.strategy, shape, devices)
    group = devices // held.copies
    inside = held.traffic.bytes(micro_batches, shape.width, group)
    among = 2 * micro_batches * EXACT * shape.learned / group * (held.copies - 1) / held.copies
    return inside, among


def gathers(config: Config, shape: Shape, batches: int, devices: int) -> float:
    """Bytes of the weights that a device gets from others for so many passes that only compute."""
    if not footprint(config.strategy, shape, devices).sharded:
        return 0.0
    return max(1, batches) * shape.width * shape.weights * (devices - 1) / devices
