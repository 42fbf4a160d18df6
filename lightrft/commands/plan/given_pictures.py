"""The plan of a run that teaches a diffusion pipeline by given pictures (`lightrft plan sft`, `lightrft plan dpo`): memory of a device, no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import torch

from lightrft.build.dpo_pictures import bound_objective
from lightrft.build.sft_pictures import check_options
from lightrft.build.tables import engine_footprint, footprint
from lightrft.build.tasks import evaluated_tasks
from lightrft.commands.plan import GIB
from lightrft.commands.plan.memory import Item, largest_batch
from lightrft.commands.plan.memory import sums as summed
from lightrft.commands.plan.offline import OfflinePlan
from lightrft.commands.plan.pictures import COLOURS, Decoder, PictureShape, refuse_lengths
from lightrft.commands.plan.traced import peak
from lightrft.config import DPOConfig, OfflineConfig, RolloutConfig, SFTConfig
from lightrft.config.plan import Hardware
from lightrft.engines.footprint import Demand, EngineFootprint
from lightrft.models.demands import ENGINE, check_parts
from lightrft.models.given_pictures import GIVEN, drawing_of
from lightrft.models.lora import starts_as_base
from lightrft.models.pictures import state_shape
from lightrft.models.pipelines import FlowSource, Pipeline
from lightrft.strategy.memory import Phase
from lightrft.trainer.offline import OPEN_AT_ONCE


@dataclass(frozen=True)
class Encoder(Decoder):
    """The VAE of a pipeline as it reads given pictures, or clips."""

    size: tuple[int, ...]
    """Rows and columns of a picture in pixels, with the frames of a clip before them."""

    @cached_property
    def working(self) -> int:
        """Bytes to read one picture."""
        if self.module is None:
            return 0
        picture = torch.empty(1, COLOURS, *self.size, device="meta")
        return peak(self.module, lambda: self.pipeline.family.encode(self.module, picture))


@dataclass(frozen=True)
class GivenPicturesPlan(OfflinePlan):
    """What is shown. A batch is counted in positions that the network reads, `model.positions` for a picture at a level of noise."""

    model: PictureShape
    encoder: Encoder
    together: int
    """Pictures at a level of noise that come with a text, which no batch divides."""

    @property
    def share(self) -> int:
        """Texts of a step on one device."""
        return ceil(self.config.batch_size / self.hardware.devices)

    def opened(self, most: int) -> int:
        """Held-out texts of at most `most` that a device has in memory at once."""
        limited = min(most, self.config.evaluate.limit or most)
        return min(ceil(limited / self.hardware.devices), OPEN_AT_ONCE)

    @property
    def trained(self) -> int:
        """Pictures at a level of noise in the largest micro-batch."""
        return min(self.tokens // self.model.positions, self.share * self.together)

    @property
    def scored(self) -> int:
        """Pictures at a level of noise in the largest batch without gradients: of held-out texts, and of a step where there is a reference."""
        texts = self.opened(OPEN_AT_ONCE * self.hardware.devices)
        if isinstance(self.config, DPOConfig):
            texts = max(texts, self.share)
        return min(self.tokens // self.model.positions, texts * self.together)

    @property
    def drawn(self) -> int:
        """The model's own pictures that are drawn at once."""
        return min(self.opened(self.config.log.held_out_prompts), self.model.options.max_sequences)

    @cached_property
    def _drawing(self) -> int:
        """Bytes to draw them, guided if that is set."""
        assert isinstance(self.config, SFTConfig), "engine"
        options = replace(self.model.options, guidance=self.config.pictures.guidance)
        return replace(self.model, options=options).computing(self.drawn)

    @cached_property
    def engine(self) -> EngineFootprint | None:
        """What draws the model's own pictures for held-out texts holds, where anything does (build/sft_pictures.py)."""
        config, devices = self.config, self.hardware.devices
        if not isinstance(config, SFTConfig) or not evaluated_tasks(config):
            return None
        sharded = footprint(config.strategy, self.model, devices).sharded
        drawn = config.log.held_out_prompts and config.pictures.sampled_steps
        if not drawn or (sharded and not config.log.sample_sharded):
            return None
        on_cpu, room = config.strategy.device == "cpu", int(self.hardware.memory_gib * GIB)
        demand = Demand(0, 0, devices, on_cpu, room, sharded)
        return engine_footprint(RolloutConfig(engine=ENGINE), self.model, demand)

    @cached_property
    def resident(self) -> list[Item]:
        """What takes memory however long a batch is."""
        on_cpu = self.config.strategy.device == "cpu"
        reads = Item("vae", self.encoder.bytes, self.phases if on_cpu else (Phase.SCORE,))
        found = [*super().resident, reads, Item("reading a picture", self.encoder.working, (Phase.SCORE,))]
        if self.engine is not None:
            decoding = Decoder(self.encoder.pipeline, self.encoder.state).working
            found += [
                Item("engine vae", self.encoder.bytes, self.phases if on_cpu else (Phase.ROLLOUT,)),
                Item(f"drawing {self.drawn} pictures at once", self._drawing, (Phase.ROLLOUT,), "drawing"),
                Item("decoding a picture", decoding, (Phase.ROLLOUT,), "decoding"),
            ]
        return [item for item in found if item.bytes]

    @property
    def items(self) -> list[Item]:
        """All that takes memory."""
        return [
            *self.resident,
            Item(
                f"activations, {self.trained} noised pictures",
                self.model.training(self.trained),
                (Phase.TRAIN,),
            ),
            Item("activations, no gradient", self.model.computing(self.scored), (Phase.SCORE,)),
        ]

    @property
    def largest_batch(self) -> int:
        """Most positions of a batch that fit; 0 if the rest is too much already."""
        held: Mapping[Phase, int] = summed(self.resident)
        rows = [
            largest_batch(self.usable - held[phase], of)
            for phase, of in ((Phase.TRAIN, self.model.training), (Phase.SCORE, self.model.computing))
        ]
        return min(rows) * self.model.positions

    @property
    def lower(self) -> str:
        """What to lower so that a batch fits."""
        return f"Lower update.tokens_per_micro_batch to {self.largest_batch:,} or less"

    @property
    def sample_less(self) -> str:
        """What to lower so that the model's own pictures fit."""
        return "Lower log.held_out_prompts, or set pictures.sampled_steps=0"


def plan(config: OfflineConfig, hardware: Hardware, prompt: int, response: int) -> GivenPicturesPlan:
    """The plan of a run. ValueError for lengths that a pipeline does not have, or what it cannot obey; `prompt`, `response`: 0 if none is asked for."""
    refuse_lengths(config.model, prompt, response, "pictures.max_text_tokens", "pictures.levels")
    assert isinstance(config, SFTConfig | DPOConfig), "reward models are no pipelines"
    compared = isinstance(config, DPOConfig)
    if isinstance(config, DPOConfig):
        bound_objective(config)
    else:
        check_options(config)
    check_parts(config, f"model.path={config.model.path} is a diffusion pipeline")
    pipeline = Pipeline(config.model)
    pipeline.check_kind()
    drawing = drawing_of(pipeline, config.pictures)
    state, positions = state_shape(pipeline, drawing, GIVEN)
    source = FlowSource(config.model)
    learned = replace(drawing, guidance=1.0)  # only what is drawn is guided
    shape = PictureShape(source, pipeline=pipeline, options=learned, optimizer=config.optimizer)
    apart = compared and not starts_as_base(config.model.lora)
    frozen = replace(shape, source=FlowSource(config.model, learns=False)) if apart else None
    together = (
        2 if compared else 1
    ) * config.pictures.levels  # the responses of a pair are read in one batch
    rows = max(config.update.tokens_per_micro_batch // positions, together)
    frames = (config.pictures.frames,) if pipeline.frames else ()
    encoder = Encoder(pipeline, state, (*frames, *pipeline.size(drawing)))
    return GivenPicturesPlan(config, hardware, shape, frozen, rows * positions, 0, encoder, together)
