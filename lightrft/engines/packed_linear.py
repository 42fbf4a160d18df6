"""Fewer and faster operations for a model that generates on a CPU, with the same results.

Two things, both undone on leaving, neither touching a parameter. Every plain linear layer multiplies by a copy of its
weight in oneDNN's own layout. Decoder layers of the shape that Llama introduced compute with fewer operations: one
product for query, key and value, activation, gate and residual inside the products, rotation in three operations.
Any other layer keeps the forward it came with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightrft.models.linear import is_plain

LLAMA_SHAPED = ("LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
"""Classes of transformers whose forward is the one written down in `_layer`; the oracle tests hold them to it."""

_ACTIVATIONS = {"SiLUActivation": "swish", "SiLU": "swish"}
_ROWS = 64
"""Rows the layout of a weight is chosen for; measured to serve 1 to 1024 rows equally well."""


@contextmanager
def fast(module: nn.Module) -> Iterator[None]:
    """Inside, `module` computes the same faster, if it is on a CPU. Not for use with gradients.

    The copies are made on entry and dropped on exit, so none can outlive a change of the weights. They cost the
    memory of the weights once more.
    """
    before = {part: part.__dict__.get("forward") for part in module.modules()}  # models/compiled.py sets some
    try:
        if torch.backends.mkldnn.is_available():
            _hurry(module)
        yield
    finally:
        for part, forward in before.items():
            part.__dict__.pop("forward", None)
            if forward is not None:
                part.forward = forward


def _hurry(module: nn.Module) -> None:
    layers = [part for part in module.modules() if type(part).__name__ in LLAMA_SHAPED and _is_plain(part)]
    for layer in layers:
        layer.forward = _layer(layer)
    inside = {inner for layer in layers for inner in layer.modules()}
    for part in module.modules():
        if is_plain(part) and part not in inside and _is_packable(part):
            part.forward = _Product(part)  # type: ignore[method-assign, assignment]


def _is_packable(linear: nn.Linear) -> bool:
    weight = linear.weight
    return type(weight.data) is Tensor and weight.device.type == "cpu" and weight.dtype in _packable_types()


@cache
def _packable_types() -> tuple[torch.dtype, ...]:
    """What oneDNN multiplies on this processor: bfloat16 needs newer instructions (AVX-512 or AVX-NE-CONVERT)."""
    bfloat16: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if bfloat16 else (torch.float32,)


def _is_plain(layer: Any) -> bool:
    """Whether nothing (such as an adapter) has replaced one of its linear layers."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = (
        attention.q_proj,
        attention.k_proj,
        attention.v_proj,
        attention.o_proj,
        mlp.gate_proj,
        mlp.up_proj,
        mlp.down_proj,
    )
    return type(mlp.act_fn).__name__ in _ACTIVATIONS and all(is_plain(x) and _is_packable(x) for x in linears)


class _Product:
    """x -> x W^T + b for one linear layer, or for several side by side."""

    def __init__(self, *linears: nn.Linear) -> None:
        weight = linears[0].weight if len(linears) == 1 else torch.cat([x.weight for x in linears])
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        biases = [x.bias.detach() for x in linears if x.bias is not None]
        self._bias = torch.cat(biases) if biases else None

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x, self._weight, self._bias, activation, [], ""
        )
        return out

    def fused(self, operation: str, x: Tensor, other: Tensor) -> Tensor:
        """The product, "add"-ed to or "mul"-tiplied by `other`."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self._weight, self._bias, operation)
        return out


def _layer(layer: Any) -> Callable[..., Tensor]:
    mlp, attention = layer.mlp, layer.self_attn
    qkv, joined = _Product(attention.q_proj, attention.k_proj, attention.v_proj), _Product(attention.o_proj)
    gate, up, down = _Product(mlp.gate_proj), _Product(mlp.up_proj), _Product(mlp.down_proj)
    activation = _ACTIVATIONS[type(mlp.act_fn).__name__]
    size, window = attention.head_dim, vars(attention).get("sliding_window")
    num_keys = attention.k_proj.out_features // size
    num_queries = attention.q_proj.out_features // size
    normed = "q_norm" in attention._modules

    def forward(
        hidden: Tensor, *, position_embeddings: tuple[Tensor, Tensor], layout: Any, **_: Any
    ) -> Tensor:
        heads = qkv(_rms_norm(layer.input_layernorm, hidden))[0].unflatten(
            -1, (-1, size)
        )  # (N, Hq + 2 Hkv, D)
        query, key, value = heads.split((num_queries, num_keys, num_keys), 1)
        both = heads[:, : num_queries + num_keys]
        if normed:
            both = torch.cat([_rms_norm(attention.q_norm, query), _rms_norm(attention.k_norm, key)], 1)
        query, key = _rotated(both, *position_embeddings).split((num_queries, num_keys), 1)
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        seen = layout.attend(attention, q, k, v, attention.scaling, window).flatten(2)
        hidden = joined.fused("add", seen, hidden)
        x = _rms_norm(layer.post_attention_layernorm, hidden)
        return down.fused("add", up.fused("mul", x, gate(x, activation)), hidden)

    return forward


def _rms_norm(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (N, heads, D); cos and sin (1, N, D) come from the model."""
    cos, sin, half = cos[0, :, None], sin[0, :, None], x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return out
