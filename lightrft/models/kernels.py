"""Fused kernels of liger-kernel in the decoder layers (`model.kernels`): norms, rotary positions, gated activations.

Hsu et al. 2024, https://arxiv.org/abs/2410.10989. What a layer does is not changed, only by how many passes over memory: each of these
operations is several in transformers. Modules keep their parameters and names; only parts whose formula is known here are exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import ModelConfig
from lightrft.models.blocks import blocks, denoises
from lightrft.models.spread import is_spread
from lightrft.utils.device import runs_triton
from lightrft.utils.extras import install_command, installed

PACKAGE = "liger-kernel"
ROTARY = "apply_rotary_pos_emb"
"""What transformers calls the function that turns queries and keys by their positions."""


@dataclass(frozen=True)
class Norm:
    """How a class of RMSNorm computes: x / rms(x) * (weight + offset)."""

    eps: str
    """Name of the attribute with the number that is added to the mean square."""
    offset: float
    casting: str
    """What is computed in float32, as liger-kernel calls it: llama, x / rms(x); gemma, all of it."""


NORMS: Mapping[str, Norm] = {
    **{f"{family}RMSNorm": Norm("variance_epsilon", 0.0, "llama") for family in ("Llama", "Mistral", "Qwen2", "Qwen3")},
    "Gemma3RMSNorm": Norm("eps", 1.0, "gemma"),
}  # fmt: skip
MLPS = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "Gemma3MLP")
"""Classes that compute down(act(gate(x)) * up(x))."""
ATTENTIONS = ("LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention", "Gemma3Attention")
"""Classes whose `forward` turns whole heads of queries and keys by ROTARY."""


def check_kernels(config: ModelConfig, device: torch.device) -> None:
    """ValueError if `model.kernels=liger` cannot be had: on another device than it is for, or not installed."""
    if config.kernels != "liger":
        return
    if not runs_triton(device):
        raise ValueError(
            f"model.kernels=liger: these kernels are for NVIDIA and AMD GPUs, and this run computes on {device.type}. Set model.kernels=off."
        )
    if not installed(PACKAGE):
        raise ValueError(
            f"model.kernels=liger: it is not installed. Try: {install_command(PACKAGE)}, or set model.kernels=off."
        )


def check_known(model: nn.Module, called: str) -> None:
    """ValueError if `model.kernels=liger` would exchange no part of a model; its weights may be missing. `called`: setting=value of the model."""
    if not _known(model):
        raise ValueError(
            f"model.kernels=liger: no part of {called} is known here (known are {', '.join(MLPS)} and what goes with them). "
            "Set model.kernels=auto, which leaves such a model as it is, or off."
        )


def use_kernels(model: nn.Module, config: ModelConfig) -> None:
    """Lets the decoder layers of a model, which is on the device that it computes on, do so by fused kernels, as `model.kernels` says.

    ValueError if `model.kernels=liger` and that cannot be, unless the model has no weights: then it is only described, or others compute it.
    """
    if config.kernels == "off":
        return
    device = next(model.parameters()).device
    if not runs_triton(device) or not installed(PACKAGE):
        if not _is_shape(model):
            check_kernels(config, device)
        return
    if not fuse(model) and config.kernels == "liger":
        check_known(model, f"model.path={config.path}")


def _is_shape(model: nn.Module) -> bool:
    """Whether a model has shapes alone: on the meta device, or each parameter a view of one number (models/spread.py)."""
    first = next(p for p in model.parameters() if p.numel() > 1)
    return first.is_meta or is_spread(first)


def _known(model: nn.Module) -> list[nn.Module]:
    """Parts of the decoder layers that have a formula here."""
    if denoises(model):
        return []
    known = {*NORMS, *MLPS, *ATTENTIONS}
    return [part for layer in blocks(model) for part in layer.modules() if type(part).__name__ in known]


def fuse(model: nn.Module) -> int:
    """Exchanges the parts of the decoder layers that are known; how many."""
    found = 0
    for part in _known(model):
        forward = _fused(part)
        if forward is not None:
            part.forward = forward
            found += 1
    return found


def _fused(part: Any) -> Callable[..., Any] | None:
    """What a part of a layer computes by fused kernels; None where it stays as it is."""
    name = type(part).__name__
    if name in NORMS:
        return partial(_norm, part, NORMS[name])
    if name in MLPS:
        gated = _gated(part.act_fn)
        return None if gated is None else partial(_mlp, part, gated)
    return partial(_turning(type(part)), part) if name in ATTENTIONS else None


def _norm(part: Any, how: Norm, x: Tensor) -> Tensor:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    # Not in place: the gradient that comes in may be that of the residual stream, too.
    found: Tensor = LigerRMSNormFunction.apply(
        x, part.weight, getattr(part, how.eps), how.offset, how.casting, False
    )
    return found


def _gated(activation: nn.Module) -> Callable[[Tensor, Tensor], Tensor] | None:
    """act(a) * b for the activations that have a kernel."""
    from liger_kernel.ops.geglu import LigerGELUMulFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    known: dict[str, Any] = {
        "SiLUActivation": LigerSiLUMulFunction, "SiLU": LigerSiLUMulFunction, "GELUTanh": LigerGELUMulFunction,
    }  # fmt: skip
    kernel = known.get(type(activation).__name__)
    return None if kernel is None else kernel.apply


def _mlp(part: Any, gated: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = part.down_proj(gated(part.gate_proj(x), part.up_proj(x)))
    return found


def _turning(kind: type[nn.Module]) -> Callable[..., Any]:
    """The `forward` of a class of attention, in which ROTARY alone is another function: that of this class, and of no other model."""
    plain: Any = kind.forward
    named = {**plain.__globals__, ROTARY: _rotary}
    found = FunctionType(plain.__code__, named, plain.__name__, plain.__defaults__, plain.__closure__)
    found.__kwdefaults__ = plain.__kwdefaults__
    return found


def _rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
    from liger_kernel.ops.rope import LigerRopeFunction

    return LigerRopeFunction.apply(query, key, cos, sin, None, unsqueeze_dim)
