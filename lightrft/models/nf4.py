"""Linear layers whose matrix rests in 4 bits, the normal floats of QLoRA: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314.

Blocks of 64 numbers share a float32, the largest of them in absolute value; each number is the nearest of 16 between -1 and 1 (appendix E),
times that. The scales are not rounded themselves (no double quantisation): 4.5 bits a number in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.models.linear import FastLinear, input_gradient, linear
from lightrft.models.spread import is_spread, spread
from lightrft.utils.imports import require

BLOCK = 64
"""Numbers that share a scale."""
SCALE = 4
"""Bytes of a scale."""


class Nf4Linear(nn.Linear):
    """A frozen linear layer that computes with its rounded matrix, made whole for each product and dropped after it.

    Made of a plain one by `round_linear`, in place. `packed`, its parameter, holds the scales of all blocks and then two numbers in a byte.
    """

    packed: nn.Parameter
    dtype: torch.dtype
    """Type that the matrix is computed with in."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter in torch
        """The matrix (N, K) as it is computed with: rounded, in `dtype`; made anew at each reading, and of no memory while it is empty."""
        return _whole(self.packed, (self.out_features, self.in_features), self.dtype)

    @property
    def is_empty(self) -> bool:
        """Whether its numbers are still to come (models/lazy.py)."""
        return _is_empty(self.packed)

    def rounded(self, weight: Tensor) -> Tensor:
        """What `weight` would be if this layer had been made of it: of a matrix (N, K) in any type one in `dtype`."""
        return _whole(_packed(weight.to(self.dtype)), weight.shape, self.dtype)

    def forward(self, input: Tensor) -> Tensor:  # torch's name
        """What it makes of hidden states (..., K)."""
        found: Tensor = _Product.apply(input, self.packed, self.bias, self)  # type: ignore[no-untyped-call]
        return found

    def unpack(self) -> Callable[[], None]:
        """Becomes a plain linear layer with the rounded matrix, until the function that is returned is called."""
        packed, plain = self.packed, nn.Parameter(self.weight, requires_grad=False)
        del self.packed
        self.__class__ = FastLinear  # type: ignore[assignment]
        nn.Module.register_parameter(self, "weight", plain)

        def back() -> None:
            _become(self, packed)

        return back


class _Product(torch.autograd.Function):
    """x W^T + b, of which nothing but `packed` is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, bias: Tensor | None, layer: Nf4Linear) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.layer = layer.out_features, layer.in_features, layer.dtype
        return linear(x, layer.weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        (packed,) = ctx.saved_tensors
        *shape, dtype = ctx.layer
        return input_gradient(grad, _whole(packed, shape, dtype)), None, None, None


def need_library() -> None:
    """RuntimeError with the command that installs what rounds, where that is missing."""
    _library()


def round_linear(layer: nn.Linear) -> None:
    """Makes a plain linear layer an `Nf4Linear`, in place; one without weights stays so.

    Numbers are rounded in host memory whatever device they are on, so that every machine gets the same.
    """
    weight = layer.weight.detach()
    if _is_empty(weight):
        packed = spread(torch.uint8, (nf4_bytes(weight.numel()),), weight.device)
    else:
        packed = _packed(weight)
    layer.dtype = weight.dtype  # type: ignore[assignment]
    _become(layer, nn.Parameter(packed, requires_grad=False))


def nf4_bytes(numbers: int) -> int:
    """Bytes of so many numbers in 4 bits, with the scales of their blocks."""
    return SCALE * -(-numbers // BLOCK) + -(-numbers // 2)


def rounded_sizes(module: nn.Module) -> dict[nn.Parameter, int]:
    """Each parameter of `module` that holds numbers in 4 bits -> how many numbers it holds."""
    return {m.packed: m.out_features * m.in_features for m in module.modules() if isinstance(m, Nf4Linear)}


def numbers(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """Name, parameter and how many numbers that holds, for all parameters of a module; tied ones once."""
    rounded = rounded_sizes(module)
    for name, parameter in module.named_parameters():
        yield name, parameter, rounded.get(parameter, parameter.numel())


def whole_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights with none of them rounded, as a folder holds them."""
    rounded = {m.packed: m.dtype for m in module.modules() if isinstance(m, Nf4Linear)}
    return sum(count * rounded.get(p, p.dtype).itemsize for _, p, count in numbers(module))


def _library() -> Any:
    return require("bitsandbytes", "bitsandbytes", "take model.lora.quantize_base=off")


def _become(layer: nn.Linear, packed: nn.Parameter) -> None:
    del layer.weight
    layer.__class__ = Nf4Linear
    layer.register_parameter("packed", packed)


def _is_empty(tensor: Tensor) -> bool:
    return tensor.is_meta or is_spread(tensor)


def _packed(weight: Tensor) -> Tensor:
    """Scales and codes of a matrix, (bytes,), where the matrix is."""
    functional = _library().functional
    codes, state = functional.quantize_4bit(
        weight.cpu().contiguous(), blocksize=BLOCK, quant_type="nf4", compress_statistics=False
    )
    return torch.cat([state.absmax.view(torch.uint8), codes.reshape(-1)]).to(weight.device)


def _whole(packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The numbers in `packed` as a tensor of this shape: code times scale in float32, then `dtype`."""
    if packed.is_meta:
        return torch.empty(shape, dtype=dtype, device="meta")
    if _is_empty(packed):
        return spread(dtype, shape, packed.device)
    functional = _library().functional
    count = prod(shape)
    scales = SCALE * -(-count // BLOCK)
    codes = packed[scales:].view(-1, 1)
    # Read as one row: for rows of an odd length the library would compile a function first.
    state = functional.QuantState(
        absmax=packed[:scales].view(torch.float32),
        shape=torch.Size([1, 2 * codes.numel()]),
        dtype=dtype,
        blocksize=BLOCK,
        quant_type="nf4",
    )
    found: Tensor = functional.dequantize_4bit(codes, state)
    return found.reshape(-1)[:count].view(shape)
