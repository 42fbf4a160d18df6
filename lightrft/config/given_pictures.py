"""The options of given pictures, which a diffusion pipeline learns from without drawing any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class GivenPicturesConfig:
    """How given pictures are read; only where model.path is a diffusion pipeline."""

    levels: int = 1
    """Levels of noise at which a picture is looked at in a step, drawn anew for each prompt and step; its error is their mean. One
    is what published runs have."""
    height: int = 0
    """Rows in pixels that pictures are scaled and cut to; 0: what the network was made for."""
    width: int = 0
    """Columns in pixels that pictures are scaled and cut to; 0: what the network was made for."""
    frames: int = 1
    """Frames of a clip, where the pipeline draws clips: its first ones, at pictures.fps. Responses are clips if it is above 1."""
    fps: float = 16.0
    """Frames per second that are taken of a clip. Wan 2.1 was made for 16."""
    max_text_tokens: int = 256
    """Tokens of the long text encoder (max_sequence_length); positions without text are read as well."""

    def __post_init__(self) -> None:
        check_ranges("pictures", self)
        if self.frames == 1:
            refuse_idle(
                "pictures", self, ["fps"], because="pictures.frames=1", cure="set pictures.frames above 1"
            )


@dataclass(frozen=True, kw_only=True)
class TaughtPicturesConfig(GivenPicturesConfig):
    """How a diffusion pipeline learns to draw given pictures; only where model.path is one."""

    density: Literal["uniform", "logit_normal"] = "uniform"
    """How levels of noise are drawn from the scheduler's. logit_normal: most in the middle, as for Stable Diffusion 3 (Esser et al. 2024,
    https://arxiv.org/abs/2403.03206, eq. 19 with m=0, s=1)."""
    text_dropout: float = 0.0
    """Share of the pictures that are learned without their text, so that guidance works later (Ho and Salimans 2022,
    https://arxiv.org/abs/2207.12598); held-out ones never are."""
    guidance: float = 1.0
    """Guidance of the model's own pictures (guidance_scale); 1: none. A network that is told it (FLUX.1 dev) learns with it; others learn without."""
    sampled_steps: int = 28
    """Denoising steps of the model's own picture for each of log.held_out_prompts, beside the one of the data; 0: none is drawn."""
