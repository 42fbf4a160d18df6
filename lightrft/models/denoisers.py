"""The denoising networks we can read, a row for each class: how text becomes conditions, how the network is called, how a latent is cut.

A row is all that a pipeline needs. States are latents in rows and columns (C, H, W), those of clips (C, F, H, W), whatever layout the
network reads them in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")


class Asked(NamedTuple):
    """What the text encoders of a pipeline are asked for."""

    text: str | None
    """None: what guidance is told when nothing is said."""
    most: int
    """Most tokens of the long text encoder."""


Settings = Mapping[str, Any]
"""What a component's config.json says."""
Conditions = Callable[[Any, Asked], dict[str, Tensor]]
"""Pipeline, what is asked -> keywords of the forward, (1, ...) each; on the CPU."""
Forward = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""Network, states (T, ...), times (T,) as the scheduler has them, conditions -> what it predicts, shaped as the states."""
Guided = Callable[[Tensor, Tensor, float], Tensor]
"""Prediction with the text, without it, guidance -> the guided prediction."""
Decode = Callable[[Any, Tensor], Tensor]
"""VAE, latents (B, ...) -> pictures (B, 3, H, W) or clips (B, 3, F, H, W) in [-1, 1]."""


def guided(found: Tensor, without: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598, eq. 6)."""
    return without + guidance * (found - without)


def kl_scale(vae: Settings) -> int:
    """Pixels to a number of the latent of an AutoencoderKL."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def kl_decode(vae: Any, x: Tensor) -> Tensor:
    """Pictures of the latents of an AutoencoderKL."""
    latents = x / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    found: Tensor = vae.decode(latents.to(next(vae.parameters()).dtype), return_dict=False)[0]
    return found


@dataclass(frozen=True)
class Family:
    """How one class of denoising networks is called."""

    pipeline: str
    """Class of the pipeline that reads its prompts."""
    conditions: Conditions
    forward: Forward
    channels: Callable[[Settings], int]
    """Settings of the network -> channels of a state."""
    patch: Callable[[Settings], int]
    """Settings of the network -> rows, and columns, of a state that it reads as one position."""
    sides: Callable[[Settings], tuple[int, int]]
    """Settings of the network -> rows and columns of a state where no size is asked for."""
    long: str = ""
    """The tokenizer whose texts rollout.denoise.max_text_tokens cuts; empty: none."""
    around: int = 0
    """Tokens that stand around a prompt for that tokenizer."""
    even: bool = False
    """Whether its pipeline asks the scheduler for even sigmas, from 1 to 1 / steps, before they are shifted."""
    guided: Guided = guided
    scale: Callable[[Settings], int] = kl_scale
    """Settings of the VAE -> pixels to a row of a state."""
    decode: Decode = kl_decode


def _sd3_conditions(pipe: Any, asked: Asked) -> dict[str, Tensor]:
    found = pipe.encode_prompt(
        asked.text or "", None, None, device=CPU, do_classifier_free_guidance=False, max_sequence_length=asked.most
    )  # fmt: skip
    return {"encoder_hidden_states": found[0], "pooled_projections": found[2]}


def _sd3_forward(module: nn.Module, x: Tensor, times: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = module(hidden_states=x, timestep=times, return_dict=False, **conditions)[0]
    return found


FAMILIES: dict[str, Family] = {
    # Stable Diffusion 3 and 3.5 (Esser et al. 2024, https://arxiv.org/abs/2403.03206).
    "SD3Transformer2DModel": Family(
        "StableDiffusion3Pipeline", _sd3_conditions, _sd3_forward, channels=lambda s: int(s["in_channels"]),
        patch=lambda s: int(s["patch_size"]), sides=lambda s: (int(s["sample_size"]),) * 2, long="tokenizer_3",
    ),
}  # fmt: skip
"""Class of the network -> how it is called."""
