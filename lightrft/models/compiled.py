"""Decoder layers through torch.compile (`model.compile`): products stay as they are, what lies between them is fused.

A layer is compiled for passes over packed tokens of any number, once with gradients and once without, and all layers of a class share what
was compiled. Attention stays outside: whom a token sees differs from batch to batch, and its kernels are fused already. Passes of the native
engine take the layers as they are, with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from lightrft.config import ModelConfig
from lightrft.models.attention import ATTENTION, BothWays, SharedPrompts, packed_attention
from lightrft.models.blocks import blocks, denoises
from lightrft.models.experts import has_experts
from lightrft.models.sequence import Swapped

PACKED = (SharedPrompts, BothWays, Swapped)
"""Layouts of passes that are compiled: those of the trainer."""
INDUCTOR = "inductor"
VARIANTS = 64
"""Most times that a function is compiled: for models of one class that differ, with and without gradients, adapters on and off. torch's own
limit of 8 counts all models of a process together, and goes on without compiling."""
RECOMPUTES_INSIDE = "__call__" not in vars(GradientCheckpointingLayer)
"""Whether transformers recomputes activations inside `forward` of a layer (5.23), and not around it (5.17)."""


def compile_layers(model: nn.Module, backend: str = INDUCTOR) -> None:
    """Lets the decoder layers of a language model run compiled; parameters and names stay as they are.

    Nothing is compiled before the first pass, so that layers may be sharded or adapted first. ValueError for a model that
    `check_layers` refuses.
    """
    check_layers(model)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    AttentionInterface.register(ATTENTION, torch.compiler.disable(packed_attention))
    for layer in blocks(model):
        inside = type(layer).forward
        if RECOMPUTES_INSIDE and isinstance(layer, GradientCheckpointingLayer):
            inside = inside.__wrapped__  # type: ignore[attr-defined]  # what recomputes is put around it below
        layer.forward = partial(_forward, layer, _compiled(inside, backend))


def check_layers(model: nn.Module, called: str = "this model") -> None:
    """ValueError for a model whose layers cannot be compiled as a whole; its weights may be missing. `called`: setting=value of the model."""
    told = "model.compile=true"
    if denoises(model):
        raise ValueError(
            f"{told}: it is for decoder layers, and {called} is a diffusion pipeline. Set model.compile=false."
        )
    if has_experts(model):
        raise ValueError(
            f"{told}: {called} has experts, and which tokens meet which expert is only known once the router has spoken. Set model.compile=false."
        )


def check_compiling(config: ModelConfig, device: torch.device) -> None:
    """ValueError if `model.compile` is set and torch compiles nothing for the device; found out by a function of a line."""
    why = _cannot_compile(device) if config.compile else ""
    if why:
        raise ValueError(
            f"model.compile=true: torch.compile does not work here on {device.type}: {why}. It needs a C++ compiler (g++ or clang) on a CPU, triton on "
            "a GPU. Install that, or set model.compile=false."
        )


@cache
def _cannot_compile(device: torch.device) -> str:
    """Why nothing can be compiled for the device, on one line; empty if it can."""
    ones = torch.ones(4, device=device)
    try:
        found = torch.compile(lambda x: torch.sin(x) + 1.0)(ones)
    except Exception as error:  # of its many parts each has its own kinds
        cause = getattr(error, "inner_exception", error)
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return (lines[0] if lines else type(error).__name__)[:300]
    right = bool(torch.allclose(found, torch.sin(ones) + 1.0))
    return "" if right else "what it compiled gives other numbers"


@cache
def _compiled(inside: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    """A layer's function for any number of tokens, shared by all layers that have it."""
    return torch.compile(inside, dynamic=True, backend=backend)


def _forward(layer: Any, compiled: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """What a layer computes: compiled for the trainer, plainly for everyone else."""
    if not isinstance(kwargs.get("layout"), PACKED):
        found: Tensor = type(layer).forward(layer, *args, **kwargs)
    elif RECOMPUTES_INSIDE and getattr(layer, "gradient_checkpointing", False) and layer.training:
        found = layer._gradient_checkpointing_func(partial(compiled, layer, **kwargs), *args)
    else:
        found = compiled(layer, *args, **kwargs)
    return found
