"""The plan of a run that teaches a diffusion pipeline, from the config.json files of its parts: no weight is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import ceil, prod
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from lightrft.algorithms.requirements import build_for
from lightrft.build.reward_models import held_reward_models
from lightrft.commands.plan import Plan, idle
from lightrft.commands.plan.memory import SHOWN, Item, Lengths, Models, largest_batch, sums
from lightrft.commands.plan.shape import Shape
from lightrft.commands.plan.traced import Kept, flops, kept, peak
from lightrft.commands.plan.work import Amounts, Work, gathers, sending_seconds, switches, traffic
from lightrft.config import Config, DenoiseConfig, ModelConfig
from lightrft.config.algorithm import EXACT as CLOSED_FORM
from lightrft.config.plan import Hardware
from lightrft.models.blocks import blocks
from lightrft.models.demands import check_settings
from lightrft.models.flows import AFTERWARDS, logprob
from lightrft.models.lora import starts_as_base
from lightrft.models.pictures import REMEMBERED, check_noise, state_shape
from lightrft.models.pipelines import WITHOUT, FlowSource, Pipeline, library_class
from lightrft.models.schedule import Schedule
from lightrft.models.source import Source
from lightrft.strategy.footprint import EXACT
from lightrft.strategy.memory import Phase
from lightrft.trainer.rollout import needs_old
from lightrft.utils.imports import resolve

COLOURS = 3
"""Bytes of a pixel."""


@dataclass(frozen=True)
class Straight:
    """Bytes for so many rows: a straight line through those of one and of two."""

    first: int
    second: int

    def __call__(self, rows: int) -> int:
        """Bytes of `rows`."""
        return self.first + (rows - 1) * (self.second - self.first) if rows else 0


@dataclass(frozen=True)
class PictureShape(Shape):
    """Sizes of a pipeline's network as the settings make it, and what a row takes: one picture at one step."""

    pipeline: Pipeline
    options: DenoiseConfig

    cached = 0
    linears = 0

    @cached_property
    def state(self) -> tuple[int, ...]:
        """The shape of a latent."""
        return state_shape(self.pipeline, self.options)[0]

    @cached_property
    def positions(self) -> int:
        """What the network reads for a row, in the unit of update.tokens_per_micro_batch."""
        return state_shape(self.pipeline, self.options)[1]

    @cached_property
    def conditions(self) -> dict[str, Tensor]:
        """What a prompt is to the network, (1, ...) each, on the meta device."""
        pipeline, clip = self.pipeline, self.pipeline.part("text_encoder").get("max_position_embeddings", 0)
        shapes = pipeline.family.shapes(pipeline.shape, self.options.max_text_tokens, clip)
        if pipeline.guides_twice(self.options.guidance):
            shapes |= {WITHOUT + name: shape for name, shape in shapes.items()}
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}

    @cached_property
    def schedule(self) -> Schedule:
        """The steps of training."""
        positions = self.positions - self.options.max_text_tokens
        return Schedule(self.pipeline, self.options, self.options.steps, positions)

    @cached_property
    def module(self) -> nn.Module:
        """On the meta device with all its parts, so that no layer is given random numbers."""
        return _empty(self.source)

    @cached_property
    def _plain(self) -> nn.Module:
        """The network without recomputation."""
        return _empty(replace(self.source, config=replace(self.source.config, gradient_checkpointing=False)))

    def _inputs(self, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        x = torch.empty(rows, *self.state, device="meta")
        places = torch.zeros(rows, dtype=torch.int64, device="meta")
        return x, places, {name: c.repeat(rows, *[1] * (c.dim() - 1)) for name, c in self.conditions.items()}

    def _trained(self, rows: int) -> Tensor:
        x, places, conditions = self._inputs(rows)
        return logprob(x, self.schedule.noisy(self._plain, x, places, conditions))

    def _drawn(self, rows: int) -> Tensor:
        return self.schedule.exact(self._plain, *self._inputs(rows))

    def _kept(self, rows: int) -> Kept:
        return kept(self._plain, blocks(self._plain), partial(self._trained, rows))

    @cached_property
    def training(self) -> Straight:
        """Bytes of a training pass: what the forward pass keeps and, where blocks are computed again, what the largest of them keeps."""
        one, two = self._kept(1), self._kept(2)
        if not self.source.config.gradient_checkpointing:
            return Straight(one.whole, two.whole)
        return Straight(*(k.outside + k.entering + k.largest for k in (one, two)))

    @cached_property
    def computing(self) -> Straight:
        """Bytes of a pass without gradients, to draw a step or to score one."""
        peak(self._plain, partial(self._drawn, 1))  # some networks keep tables that depend on sizes
        return Straight(*(peak(self._plain, partial(self._drawn, rows)) for rows in (1, 2)))

    @cached_property
    def flops(self) -> int:
        """Operations of a row's forward pass, its guidance included."""
        return flops(partial(self._drawn, 1))


@dataclass(frozen=True)
class Decoder:
    """The VAE of a pipeline, as its config.json has it."""

    pipeline: Pipeline
    state: tuple[int, ...]

    @cached_property
    def module(self) -> nn.Module | None:
        """On the meta device, None of a pipeline that draws pixels."""
        if not self.pipeline.has_vae:
            return None
        kind = library_class(self.pipeline.index["vae"][1])
        with torch.device("meta"):
            made: nn.Module = kind.from_config(self.pipeline.part("vae"))
        return made.eval()

    @cached_property
    def bytes(self) -> int:
        """All its weights, in float32."""
        return EXACT * _weights(self.module)

    def _decoded(self) -> Tensor:
        return self.pipeline.family.decode(self.module, torch.empty(1, *self.state, device="meta"))

    @cached_property
    def working(self) -> int:
        """Bytes to decode one picture."""
        return 0 if self.module is None else peak(self.module, self._decoded)

    @cached_property
    def flops(self) -> int:
        """Operations to decode one picture."""
        return 0 if self.module is None else flops(self._decoded)


@dataclass(frozen=True)
class PicturePlan(Plan):
    """What `lightrft plan` shows of a pipeline. A batch is counted in positions that the network reads, `shape.positions` for a row."""

    shape: PictureShape
    decoder: Decoder

    @property
    def answers(self) -> int:
        """Pictures of a step on one device."""
        asked = self.config.rollout.prompts_per_step * self.config.rollout.group_size
        return ceil(asked / self.hardware.devices)

    @property
    def together(self) -> int:
        """Rows that no micro-batch divides: one, or all of the responses that a loss looks at together."""
        whole = self.algorithm.together(self.config.rollout.group_size) * self.shape.options.learned
        return 1 if self.algorithm.entrywise and not self.algorithm.whole_groups else whole

    @property
    def least(self) -> int:
        """Positions of the smallest batch that a run can do with."""
        return self.together * self.shape.positions

    @property
    def rows(self) -> int:
        """Rows of the largest micro-batch."""
        fitting = self.config.update.tokens_per_micro_batch // self.shape.positions
        return min(max(fitting, self.together), self.answers * self.shape.options.learned)

    @property
    def tokens(self) -> int:
        """Positions of the largest batch."""
        return self.rows * self.shape.positions

    @property
    def drawn(self) -> int:
        """Pictures drawn at once."""
        return min(self.answers, self.shape.options.max_sequences)

    @cached_property
    def resident(self) -> list[Item]:
        """What takes memory however long a batch is."""
        shape, decoder = self.shape, self.decoder
        phases = SHOWN if self.on_cpu else (Phase.ROLLOUT,)
        found = [
            Item("engine vae", decoder.bytes, phases),
            Item(f"drawing {self.drawn} pictures at once", shape.computing(self.drawn), (Phase.ROLLOUT,), "drawing"),
            Item("decoding a picture", decoder.working, (Phase.ROLLOUT,), "decoding"),
        ]  # fmt: skip
        return [*super().resident, *(item for item in found if item.bytes)]

    @cached_property
    def items(self) -> list[Item]:
        """All that takes memory."""
        found = [
            Item(f"actor's activations, {self.rows} steps of pictures", self.shape.training(self.rows), (Phase.TRAIN,), "actor")
        ]  # fmt: skip
        if self.work.score.flops:
            found.append(Item("activations, no gradient", self.shape.computing(self.rows), (Phase.SCORE,)))
        return self.resident + found

    @property
    def largest_batch(self) -> int:
        """Most positions of a batch that fit; 0 if the rest is too much already."""
        held = sums(self.resident)
        rows = [
            largest_batch(self.usable - held[phase], of)
            for phase, of in ((Phase.TRAIN, self.shape.training), (Phase.SCORE, self.shape.computing))
        ]
        return min(rows) * self.shape.positions

    @cached_property
    def host(self) -> list[Item]:
        """What a process keeps in host memory."""
        options, shape = self.shape.options, self.shape
        states = options.kept + (self.config.algorithm.kl == CLOSED_FORM and self.algorithm.needs_reference)
        rows, columns = self.pipeline.size(options)
        said = EXACT * sum(c.numel() for c in shape.conditions.values())
        found = [
            Item("text encoders", EXACT * sum(map(_weights, _encoders(self.pipeline))), SHOWN),
            Item(f"conditions of {REMEMBERED} prompts", REMEMBERED * said, SHOWN),
            Item("states of the drawn steps", self.answers * options.learned * states * EXACT * prod(shape.state), SHOWN),
            Item("pictures", self.answers * options.frames * rows * columns * COLOURS, SHOWN),
        ]  # fmt: skip
        return [item for item in found if item.bytes]

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline's folder."""
        return self.shape.pipeline

    @cached_property
    def work(self) -> Work:
        """What a step computes, sends and takes; text encoders compute on the CPU and are not in it."""
        return replace(picture_work(self), switches=switches(self.resident, self.hardware.rates))

    @cached_property
    def problems(self) -> list[str]:
        """What would stop the run, or waste it."""
        found, budget = [*self.refused, *idle(self)], self.config.update.tokens_per_micro_batch
        if budget < self.least:
            what = (
                "a step of a picture reads"
                if self.together == 1
                else f"what algorithm.loss={self.config.algorithm.loss} looks at together reads"
            )
            found.append(
                f"update.tokens_per_micro_batch={budget}: {what} {self.least} positions, more than the micro-batch, and gets a batch of its own. Set "
                f"it to {self.least} or more."
            )  # fmt: skip
        return [*found, *self.too_large]


def plan(config: Config, hardware: Hardware, prompt: int, response: int) -> PicturePlan:
    """The plan of a run. ValueError for lengths that a pipeline does not have, or what it cannot obey; `prompt`, `response`: 0 if none is
    asked for."""
    refuse_lengths(
        config.model, prompt, response, "rollout.denoise.max_text_tokens", "rollout.denoise.window"
    )
    check_settings(config)
    pipeline, options = Pipeline(config.model), config.rollout.denoise
    pipeline.check_kind()
    check_noise(pipeline, options)
    algorithm = build_for(config, resolve)
    source = FlowSource(config.model)
    shape = PictureShape(source, pipeline=pipeline, options=options, optimizer=config.optimizer)
    apart = algorithm.needs_reference and not starts_as_base(config.model.lora)
    frozen = replace(shape, source=FlowSource(config.model, learns=False)) if apart else None
    for name in encoders_of(pipeline):
        pipeline.part(name)  # what cannot be read is told before anything is traced
    lengths = Lengths(options.max_text_tokens, options.learned * shape.positions)
    decoder = Decoder(pipeline, shape.state)
    rated = {name: Shape(Source(model, learns=False)) for name, model in held_reward_models(config).items()}
    models = Models(shape, reference=frozen, reward_models=rated)
    return PicturePlan(config, hardware, lengths, models, algorithm, shape, decoder)


def refuse_lengths(model: ModelConfig, prompt: int, response: int, *cures: str) -> None:
    """ValueError for lengths that a pipeline does not have; 0 if none is asked for. `cures`: the settings that say what is read of a prompt, and of a response."""
    flags = ("--prompt-tokens", prompt), ("--response-tokens", response)
    for (flag, asked), cure in zip(flags, cures, strict=True):
        if asked:
            raise ValueError(
                f"{flag} {asked}: model.path={model.path} is a diffusion pipeline. Leave it out, and set {cure}."
            )


def picture_work(plan: PicturePlan) -> Work:
    """All pictures with all their steps: drawn, and learned from where noise entered."""
    config, shape, rates, devices = plan.config, plan.shape, plan.hardware.rates, plan.hardware.devices
    products, reading = 1e12 * rates.efficiency * rates.teraflops, 1e9 * rates.efficiency * rates.memory
    answers = config.rollout.prompts_per_step * config.rollout.group_size / devices
    rows, update = answers * shape.options.learned, config.update

    steps = shape.options.steps + (shape.options.learned if shape.options.noise in AFTERWARDS else 0)
    shared = (
        shape.options.first if shape.options.same_start else 0
    )  # a window that moves begins there at the earliest
    predicted = answers * (steps - shared) + answers / config.rollout.group_size * shared
    drawn = predicted * shape.flops + answers * plan.decoder.flops
    bursts = ceil(answers / plan.drawn) * steps * shape.width * shape.plain / reading
    rollout = Amounts(predicted * shape.positions, drawn, 0.0, max(drawn / products, bursts))

    passes = int(needs_old(config, plan.algorithm)) + int(plan.algorithm.needs_reference)
    batches = max(1, ceil(rows / plan.rows))
    sent = passes * gathers(config, shape, batches, devices)
    judged = passes * rows * shape.flops
    held = plan.actor_footprint
    sending = partial(sending_seconds, held, rates, devices, plan.hardware.per_node)
    score = Amounts(passes * rows * shape.positions, judged, sent, max(judged / products, sending(sent)))

    updates = update.epochs * update.num_minibatches
    micro_batches = max(1, ceil(rows / update.num_minibatches / plan.rows))
    times = 3 + (1 if config.model.gradient_checkpointing else 0)  # a backward pass is two forward passes
    learned = update.epochs * times * rows * shape.flops
    inside, among = (updates * count for count in traffic(config, shape, micro_batches, devices))
    seconds = max(learned / products, sending(inside, among))
    train = Amounts(update.epochs * rows * shape.positions, learned, inside + among, seconds)

    group = devices // held.copies
    pushed = shape.width * shape.plain * (group - 1) / group if held.sharded else 0.0
    return Work(rollout, score, Amounts(0.0, 0.0, pushed, sending(pushed)), train, updates, micro_batches)


def _empty(source: Source) -> nn.Module:
    with torch.device("meta"):
        return source.empty("meta")


def _weights(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def encoders_of(pipeline: Pipeline) -> list[str]:
    """Names of a pipeline's text encoders."""
    return [
        name for name, part in pipeline.index.items() if name.startswith("text_encoder") and any(part or ())
    ]


def _encoders(pipeline: Pipeline) -> list[nn.Module]:
    """The text encoders on the meta device, from their config.json alone."""
    with torch.device("meta"):
        return [_encoder(pipeline, name) for name in encoders_of(pipeline)]


def _encoder(pipeline: Pipeline, name: str) -> nn.Module:
    kind: Any = getattr(transformers, pipeline.index[name][1])
    shape = kind.config_class.from_dict(pipeline.part(name))
    made: Callable[[Any], nn.Module] = getattr(kind, "_from_config", kind)
    return made(shape)
