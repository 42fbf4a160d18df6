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
    size: tuple[int, int]
    """Rows and columns of the picture in pixels."""


Settings = Mapping[str, Any]
"""What a component's config.json says."""
Conditions = Callable[[Any, Asked], dict[str, Tensor]]
"""Pipeline, what is asked -> keywords of the forward, (1, ...) each; on the CPU."""
Forward = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
"""Network, states (T, ...), times (T,) as the scheduler has them, conditions -> what it predicts, shaped as the states."""
Shapes = Callable[[Settings, int, int], dict[str, tuple[int, ...]]]
"""Settings of the network, tokens of the long text encoder, positions of CLIP -> name and shape of each of `Conditions`, for one text."""
Guided = Callable[[Tensor, Tensor, float], Tensor]
"""Prediction with the text, without it, guidance -> the guided prediction."""
Decode = Callable[[Any, Tensor], Tensor]
"""VAE, latents (B, ...) -> pictures (B, 3, H, W) or clips (B, 3, F, H, W) in [-1, 1]."""
Encode = Callable[[Any, Tensor], Tensor]
"""VAE, pictures (B, 3, H, W) in [-1, 1] -> latents (B, ...), the means of what it says."""


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


def kl_encode(vae: Any, x: Tensor) -> Tensor:
    """Latents of pictures by an AutoencoderKL: the inverse of what `kl_decode` does before the VAE."""
    latents = vae.encode(x.to(next(vae.parameters()).dtype), return_dict=False)[0].mode()
    found: Tensor = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    return found


@dataclass(frozen=True)
class Family:
    """How one class of denoising networks is called."""

    pipelines: tuple[str, ...]
    """Classes of the pipelines that draw with it from text alone."""
    conditions: Conditions
    shapes: Shapes
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
    encode: Encode = kl_encode
    scheduler: str = "FlowMatchEulerDiscreteScheduler"
    """What steps with its predictions."""
    frames: Callable[[Settings], int] | None = None
    """Settings of the VAE -> frames to a number of the state; None: it draws pictures, not clips."""


def _sd3_conditions(pipe: Any, asked: Asked) -> dict[str, Tensor]:
    found = pipe.encode_prompt(
        asked.text or "", None, None, device=CPU, do_classifier_free_guidance=False, max_sequence_length=asked.most
    )  # fmt: skip
    return {"encoder_hidden_states": found[0], "pooled_projections": found[2]}


def _sd3_shapes(s: Settings, most: int, clip: int) -> dict[str, tuple[int, ...]]:
    return {
        "encoder_hidden_states": (1, clip + most, s["joint_attention_dim"]),
        "pooled_projections": (1, s["pooled_projection_dim"]),
    }


def _plain_forward(module: nn.Module, x: Tensor, times: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = module(hidden_states=x, timestep=times, return_dict=False, **conditions)[0]
    return found


def packed(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H / 2 W / 2, 4 C): squares of two by two numbers as positions."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def unpacked(x: Tensor, like: Tensor) -> Tensor:
    """What `packed` makes of a state, back in the shape of `like`."""
    b, c, h, w = like.shape
    return x.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def places(x: Tensor) -> Tensor:
    """(H / 2 W / 2, 3): nothing, row and column of each position of a packed state."""
    rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
    found = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
    found[..., 1] = torch.arange(rows, device=x.device)[:, None]
    found[..., 2] = torch.arange(columns, device=x.device)[None, :]
    return found.flatten(0, 1)


def _flux_conditions(pipe: Any, asked: Asked) -> dict[str, Tensor]:
    found = pipe.encode_prompt(asked.text or "", None, device=CPU, max_sequence_length=asked.most)
    return {"encoder_hidden_states": found[0], "pooled_projections": found[1]}


def _flux_shapes(s: Settings, most: int, clip: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG001  # CLIP gives one vector
    found = {
        "encoder_hidden_states": (1, most, s["joint_attention_dim"]),
        "pooled_projections": (1, s["pooled_projection_dim"]),
    }
    return {**found, "guidance": (1,)} if s.get("guidance_embeds") else found


def _flux_forward(module: nn.Module, x: Tensor, times: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    text = torch.zeros(conditions["encoder_hidden_states"].shape[1], 3, device=x.device, dtype=x.dtype)
    found = module(
        hidden_states=packed(x), timestep=times / 1000, img_ids=places(x), txt_ids=text, return_dict=False, **conditions
    )  # fmt: skip
    return unpacked(found[0], x)


def norm_guided(found: Tensor, without: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance with each position as long as it is without, as Qwen-Image has it."""
    plain, moved = packed(found), packed(guided(found, without, guidance))
    scaled = moved * (plain.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True))
    return unpacked(scaled, found)


def _qwen_conditions(pipe: Any, asked: Asked) -> dict[str, Tensor]:
    """Texts padded to one length, with what says which positions are words: prompts of a batch are read side by side."""
    said, _ = pipe.encode_prompt(asked.text or "", device=CPU, max_sequence_length=asked.most)
    words = said.shape[1]
    mask = (torch.arange(asked.most) < words).float()[None]
    return {
        "encoder_hidden_states": nn.functional.pad(said, (0, 0, 0, asked.most - words)),
        "encoder_hidden_states_mask": mask,
    }


def _qwen_shapes(s: Settings, most: int, clip: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG001  # there is no CLIP
    return {
        "encoder_hidden_states": (1, most, s["joint_attention_dim"]),
        "encoder_hidden_states_mask": (1, most),
    }


def _qwen_forward(module: nn.Module, x: Tensor, times: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    size = [(1, x.shape[-2] // 2, x.shape[-1] // 2)]
    given = {**conditions, "encoder_hidden_states_mask": conditions["encoder_hidden_states_mask"].bool()}
    found = module(
        hidden_states=packed(x), timestep=times / 1000, img_shapes=[size] * len(x), return_dict=False, **given
    )
    return unpacked(found[0], x)


def frames_scale(vae: Settings) -> int:
    """Pixels to a number of the latent of a VAE of clips."""
    return int(2 ** len(vae["temperal_downsample"]))


def frames_decode(vae: Any, x: Tensor) -> Tensor:
    """Clips of the latents of a VAE of clips, which were standardised channel by channel."""
    kind = next(vae.parameters()).dtype
    mean, sd = _standard(vae, x.to(kind))
    found: Tensor = vae.decode(x.to(kind) * sd + mean, return_dict=False)[0]
    return found


def _standard(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of a VAE of clips."""
    mean, sd = (
        like.new_tensor(n).view(1, -1, 1, 1, 1) for n in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, sd


def frames_encode(vae: Any, x: Tensor) -> Tensor:
    """Latents of clips (B, 3, F, H, W) by a VAE of clips, standardised channel by channel: the inverse of what `frames_decode` does before the VAE."""
    found: Tensor = vae.encode(x.to(next(vae.parameters()).dtype), return_dict=False)[0].mode()
    mean, sd = _standard(vae, found)
    return (found - mean) / sd


def _still_decode(vae: Any, x: Tensor) -> Tensor:
    """Pictures by a VAE of clips: their first frames."""
    return frames_decode(vae, x[:, :, None])[:, :, 0]


def _still_encode(vae: Any, x: Tensor) -> Tensor:
    """Latents of pictures by a VAE of clips, as clips of one frame."""
    return frames_encode(vae, x[:, :, None])[:, :, 0]


def _wan_conditions(pipe: Any, asked: Asked) -> dict[str, Tensor]:
    said, _ = pipe.encode_prompt(
        asked.text or "", do_classifier_free_guidance=False, device=CPU, max_sequence_length=asked.most
    )
    return {"encoder_hidden_states": said}


def _wan_shapes(s: Settings, most: int, clip: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG001  # there is no CLIP
    return {"encoder_hidden_states": (1, most, s["text_dim"])}


def _unet_conditions(pipe: Any, asked: Asked) -> dict[str, Tensor]:
    """What Stable Diffusion is told by its one text encoder, SDXL by two: the latter says nothing by zeros, where its folder has it so, and is
    told the picture's size, where it was cut, and the size asked for, in pixels."""
    if not hasattr(pipe, "tokenizer_2"):
        return {"encoder_hidden_states": pipe.encode_prompt(asked.text or "", CPU, 1, False)[0]}
    said, _, pooled, _ = pipe.encode_prompt(asked.text or "", device=CPU, do_classifier_free_guidance=False)
    if asked.text is None and pipe.config.force_zeros_for_empty_prompt:
        said, pooled = torch.zeros_like(said), torch.zeros_like(pooled)
    sizes = torch.tensor([[*asked.size, 0.0, 0.0, *asked.size]])
    return {"encoder_hidden_states": said, "text_embeds": pooled, "time_ids": sizes}


def _unet_shapes(s: Settings, most: int, clip: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG001  # CLIP reads its own length
    found: dict[str, tuple[int, ...]] = {"encoder_hidden_states": (1, clip, s["cross_attention_dim"])}
    if s.get("addition_embed_type") == "text_time":
        told = 6  # numbers of `sizes`, each spread over addition_time_embed_dim
        pooled = s["projection_class_embeddings_input_dim"] - told * s["addition_time_embed_dim"]
        found |= {"text_embeds": (1, pooled), "time_ids": (1, told)}
    return found


def _unet_forward(module: nn.Module, x: Tensor, times: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    own = {name: c for name, c in conditions.items() if name != "encoder_hidden_states"}
    added = {"added_cond_kwargs": own} if own else {}
    found: Tensor = module(
        x, times, encoder_hidden_states=conditions["encoder_hidden_states"], return_dict=False, **added
    )[0]
    return found


FAMILIES: dict[str, Family] = {
    # Stable Diffusion 3 and 3.5 (Esser et al. 2024, https://arxiv.org/abs/2403.03206).
    "SD3Transformer2DModel": Family(
        ("StableDiffusion3Pipeline",), _sd3_conditions, _sd3_shapes, _plain_forward, channels=lambda s: int(s["in_channels"]),
        patch=lambda s: int(s["patch_size"]), sides=lambda s: (int(s["sample_size"]),) * 2, long="tokenizer_3",
    ),
    # FLUX.1 (Black Forest Labs 2024, https://github.com/black-forest-labs/flux): guidance is told to the network (dev) or left out (schnell).
    "FluxTransformer2DModel": Family(
        ("FluxPipeline",), _flux_conditions, _flux_shapes, _flux_forward, channels=lambda s: int(s["in_channels"]) // 4,
        patch=lambda _: 2, sides=lambda _: (128, 128), long="tokenizer_2", even=True,
    ),
    # Qwen-Image (Wu et al. 2025, https://arxiv.org/abs/2508.02324).
    "QwenImageTransformer2DModel": Family(
        ("QwenImagePipeline",), _qwen_conditions, _qwen_shapes, _qwen_forward, channels=lambda s: int(s["in_channels"]) // 4,
        patch=lambda _: 2, sides=lambda _: (128, 128), long="tokenizer", around=5, even=True, guided=norm_guided,
        scale=frames_scale, decode=_still_decode, encode=_still_encode,
    ),
    # Wan 2.1, text to clip (Wan team 2025, https://arxiv.org/abs/2503.20314).
    "WanTransformer3DModel": Family(
        ("WanPipeline",), _wan_conditions, _wan_shapes, _plain_forward, channels=lambda s: int(s["in_channels"]),
        patch=lambda s: int(s["patch_size"][1]), sides=lambda _: (60, 104), long="tokenizer",
        scale=lambda vae: int(vae["scale_factor_spatial"]), decode=frames_decode, encode=frames_encode,
        frames=lambda vae: int(vae["scale_factor_temporal"]),
    ),
    # Stable Diffusion 1 and 2 (Rombach et al. 2022, https://arxiv.org/abs/2112.10752), SDXL (Podell et al. 2023, https://arxiv.org/abs/2307.01952).
    "UNet2DConditionModel": Family(
        ("StableDiffusionPipeline", "StableDiffusionXLPipeline"), _unet_conditions, _unet_shapes, _unet_forward,
        channels=lambda s: int(s["in_channels"]), patch=lambda _: 1, sides=lambda s: (int(s["sample_size"]),) * 2, scheduler="DDIMScheduler",
    ),
}  # fmt: skip
"""Class of the network -> how it is called."""
