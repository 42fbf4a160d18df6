"""Given pictures as responses: noise is put into them, and a network says what was put in.

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
    """A diffusion pipeline that learns from pictures that it did not draw."""

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
        if pipeline.frames:
            raise ValueError(
                f"{path} that draws clips, and given responses are pictures. Take a pipeline that draws pictures."
            )
        drawing = drawing_of(pipeline, options)
        check_text(pipeline, drawing, GIVEN)
        FlowSource(config.model).check_adapters()
        shape, width = state_shape(pipeline, drawing, GIVEN)
        if not pipeline.has_vae and shape[0] not in (1, 3):
            raise ValueError(
                f"{path} without a VAE, whose states have {shape[0]} channels: no pixels. Take one with its VAE."
            )
        found = cls(config, pipeline, PictureProcessor(pipeline, drawing, shape, width, GIVEN), device)
        _ = found.schedule.levels
        return found

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
        """The state (C, H, W) float32 of a picture, scaled and cut to the size that is drawn. MediaError for one that cannot be read."""
        image = picture(source, max_pixels=self.config.media.max_pixels, limits=limits_of(self.config.media))
        channels, rows, columns = self.processor.shape
        scale = self.pipeline.scale if self.pipeline.has_vae else 1
        fit = require("PIL.ImageOps", "media").fit
        image = fit(
            image, (columns * scale, rows * scale), method=require("PIL.Image", "media").Resampling.BICUBIC
        )
        x = torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0).float() / 127.5 - 1
        if not self.pipeline.has_vae:
            return x if channels == 3 else x.mean(0, keepdim=True)
        found: Tensor = self.pipeline.family.encode(self.vae, x[None].to(next(self.vae.parameters()).device))[
            0
        ]
        return found.float().cpu()

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
        height=options.height, width=options.width, max_text_tokens=options.max_text_tokens,
        guidance=options.guidance if isinstance(options, TaughtPicturesConfig) else 1.0,
    )  # fmt: skip
