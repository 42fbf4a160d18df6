"""Given pictures, or clips, as responses: noise is put into them, and a network says what was put in.

Its squared error is what is learned to draw them: of a flow, flow matching (Lipman et al. 2022, https://arxiv.org/abs/2210.02747, eq. 14; the straight
path of Liu et al. 2022, https://arxiv.org/abs/2209.03003, eq. 1), of a diffusion model what Ho et al. 2020 (https://arxiv.org/abs/2006.11239, eq. 14) have.
Diffusion-DPO (Wallace et al. 2023, https://arxiv.org/abs/2311.12908, eq. 14) compares pictures by it, beside that of the model that the run began with:
half of it, negative, stands in the place of a log-prob, which it is for a normal distribution of deviation 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightrft.config import DenoiseConfig, DPOConfig, GivenPicturesConfig, SFTConfig, TaughtPicturesConfig
from lightrft.media.clips import opening
from lightrft.media.pictures import picture
from lightrft.models.demands import check_parts
from lightrft.models.media import limits_of
from lightrft.models.pictures import PictureProcessor, check_text, schedule, state_shape
from lightrft.models.pipelines import FlowSource, Pipeline
from lightrft.models.schedule import Schedule
from lightrft.types import Batch, Steps
from lightrft.utils.imports import require

GIVEN = "pictures"
"""Section of the settings of given pictures."""


@dataclass(frozen=True)
class GivenPictures:
    """A diffusion pipeline that learns from pictures, or clips, that it did not draw."""

    config: DPOConfig | SFTConfig
    pipeline: Pipeline
    processor: PictureProcessor
    device: torch.device
    """Where the VAE reads pictures, as a resident of the memory plan."""

    @classmethod
    def of(cls, config: DPOConfig | SFTConfig, device: torch.device) -> GivenPictures:
        """The pipeline of model.path. ValueError if it cannot learn, or not with these settings; no weights are read."""
        pipeline, options = Pipeline(config.model), config.pictures
        path = f"model.path={config.model.path} is a diffusion pipeline"
        check_parts(config, path)
        pipeline.check()
        drawing = drawing_of(pipeline, options)
        check_text(pipeline, drawing, GIVEN)
        FlowSource(config.model).check_adapters()
        shape, width = state_shape(pipeline, drawing, GIVEN)
        if not pipeline.has_vae and (pipeline.frames or shape[0] not in (1, 3)):
            states = "clips" if pipeline.frames else f"{shape[0]} channels"
            raise ValueError(
                f"{path} without a VAE, whose states have {states}: no pixels. Take one with its VAE."
            )
        found = cls(config, pipeline, PictureProcessor(pipeline, drawing, shape, width, GIVEN), device)
        _ = found.schedule.levels
        return found

    @property
    def kind(self) -> str:
        """What a response is: image, or video."""
        return "image" if self.config.pictures.frames == 1 else "video"

    @property
    def num_levels(self) -> int:
        """Levels of noise of the scheduler's training."""
        known = self.pipeline.scheduler.config
        return int(known.num_train_timesteps - known.get("steps_offset", 0))

    @cached_property
    def schedule(self) -> Schedule:
        """All levels of noise, as steps, at which the network alone is asked: guidance is of what is drawn."""
        unguided = replace(self.processor.config, guidance=1.0)
        return replace(schedule(self.processor, self.num_levels), config=unguided)

    @cached_property
    def vae(self) -> Any:
        """What reads pictures, on the CPU until a memory plan brings it to the device; None of a pipeline that draws pixels."""
        return self.pipeline.vae(torch.device("cpu"))

    @torch.no_grad()
    def state(self, source: Any) -> Tensor:
        """The state float32 of a picture (C, H, W), or of a clip (C, F, H, W) where the pipeline draws clips, scaled and cut to the size that is drawn.
        MediaError for one that cannot be read, and for a clip that is too short."""
        x = torch.stack([self._pixels(image) for image in self._images(source)], 1)  # (C, F, H, W)
        if not self.pipeline.frames:
            x = x[:, 0]
        if not self.pipeline.has_vae:
            return x if self.processor.shape[0] == 3 else x.mean(0, keepdim=True)
        device = next(self.vae.parameters()).device
        found: Tensor = self.pipeline.family.encode(self.vae, x[None].to(device))[0]
        if found.shape != self.processor.shape:
            raise ValueError(
                f"the VAE of model.path={self.config.model.path} makes {tuple(found.shape)} of {tuple(x.shape)}, where the network draws "
                f"{self.processor.shape}. Take the VAE that it was trained with."
            )
        return found.float().cpu()

    def _images(self, source: Any) -> list[Any]:
        """The picture, or the frames of the clip."""
        options, media = self.config.pictures, self.config.media
        limits = limits_of(media)
        if self.kind == "image":
            return [picture(source, max_pixels=media.max_pixels, limits=limits)]
        frames = opening(
            source, fps=options.fps, frames=options.frames, max_pixels=media.max_pixels, limits=limits
        )
        made = require("PIL.Image", "media").fromarray
        return [made(frame) for frame in frames]

    def _pixels(self, image: Any) -> Tensor:
        """(C, H, W) float32 within -1 and 1."""
        rows, columns = self.processor.shape[-2:]
        scale = self.pipeline.scale if self.pipeline.has_vae else 1
        bicubic = require("PIL.Image", "media").Resampling.BICUBIC
        fitted = require("PIL.ImageOps", "media").fit(image, (columns * scale, rows * scale), method=bicubic)
        return torch.from_numpy(np.asarray(fitted).copy()).movedim(-1, 0).float() / 127.5 - 1

    def noised(self, state: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """(K, 2, ...): the state with noise (K, ...) of levels `places` (K,) in it, and what the network should predict there."""
        level = self.schedule.levels.before[places].view(-1, *[1] * state.dim())
        pair = self.pipeline.ladder.noised(self.pipeline.scheduler, state.expand_as(noise), noise, level)
        return torch.stack(pair, 1)

    def errors(self, module: nn.Module, batch: Batch) -> Tensor:
        """(T,): the mean squared error of what the network predicts, the velocity of a flow, at each level of noise."""
        inputs = batch.inputs
        assert isinstance(inputs, Steps)
        conditions = {name: value[inputs.prompts] for name, value in inputs.media.items()}
        found = self.schedule.predicted(module, inputs.states[:, 0], inputs.places, conditions)
        return ((found - inputs.states[:, 1]) ** 2).flatten(1).mean(1)

    def logprobs(self, module: nn.Module, batch: Batch) -> Tensor:
        """(T,): minus half of the errors."""
        return -0.5 * self.errors(module, batch)


def drawing_of(pipeline: Pipeline, options: GivenPicturesConfig) -> DenoiseConfig:
    """How the pipeline would draw pictures like given ones."""
    return DenoiseConfig(
        noise=pipeline.ladder.noises[0],  # type: ignore[arg-type]
        height=options.height, width=options.width, frames=options.frames, max_text_tokens=options.max_text_tokens,
        guidance=options.guidance if isinstance(options, TaughtPicturesConfig) else 1.0,
    )  # fmt: skip
