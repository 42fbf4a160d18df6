"""Matrix products of linear layers, by the faster of the two CPU libraries that torch brings.

torch multiplies float32 matrices on the CPU with MKL; its other library, oneDNN, is faster at the shapes of language
models on many processors (see benchmarks/roofline.py). bfloat16 goes through oneDNN anyway, and other devices have one
library only.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONE_DNN = torch.backends.mkldnn.is_available()
"""Whether torch has it. Not asked for each product: torch.compile would stop at the question."""


class ExactLinear(nn.Linear):
    """Computes in float32 (float64 for a float64 model), also where a backend keeps all weights in a smaller type."""

    def forward(self, input: Tensor) -> Tensor:
        """What it makes of hidden states."""
        exact = torch.promote_types(input.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(exact)
        return F.linear(input.to(exact), self.weight.to(exact), bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, differentiable, for x (..., K), weight (N, K) and bias (N,)."""
    if _suits(x, weight) and not torch.compiler.is_compiling():  # which has no code for it
        product: Tensor = _OneDnn.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return F.linear(x, weight, bias)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient (..., K) of what `linear` multiplied with a weight (N, K), from that of the product, (..., N)."""
    flat = grad.reshape(-1, grad.shape[-1])
    found = _product(flat, weight.t(), None) if _suits(flat, weight) else flat @ weight
    return found.view(*grad.shape[:-1], weight.shape[1])


class FastLinear(nn.Linear):
    """A plain linear layer that multiplies by `linear`. A class, for torch.compile shares what it makes among modules of one class, and
    not among such as have a `forward` of their own."""

    def forward(self, input: Tensor) -> Tensor:
        """What it makes of hidden states."""
        return linear(input, self.weight, self.bias)


def use_fast_linear(model: nn.Module) -> None:
    """Lets every nn.Linear of `model` multiply through `linear`; parameters and names stay as they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer that does nothing but multiply and add its bias."""
    return type(module) in (nn.Linear, FastLinear)


def _suits(x: Tensor, weight: Tensor) -> bool:
    float32 = x.dtype == weight.dtype == torch.float32
    return float32 and x.device.type == "cpu" and ONE_DNN and not torch.is_autocast_enabled("cpu")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


class _OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            input_gradient(grad, weight) if wants_x else None,
            flat.t() @ x.reshape(-1, x.shape[-1]) if wants_weight else None,
            flat.sum(0) if wants_bias else None,
        )
