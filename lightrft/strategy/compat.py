"""What one version of torch has and another has not, from 2.11 on: each difference behind one function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

T = TypeVar("T")

_SUMS_UNUSED = hasattr(FSDPModule, "set_reduce_scatter_unused_params")
"""From torch 2.13 on, FSDP2 can take zeros for weights that a rank has not used."""


def sum_unused(whole: FSDPModule) -> None:
    """Lets ranks sum the gradients of all weights of the outermost piece, also of those that some of them have not used."""
    if _SUMS_UNUSED:
        whole.set_reduce_scatter_unused_params(True)


def touching(function: Callable[..., T], model: nn.Module, *args: Any) -> T:
    """function(model, *args), whose backward pass reaches all weights of the model that learn and are whole now.

    Where `sum_unused` cannot help, a rank whose answers have no picture would sum fewer gradients than the others, and they would
    wait for each other for ever. Weights that it does not use get a gradient of zeros here, which the newer torch gives them
    itself. To be called inside the outermost FSDP module, whose weights are whole then; those of inner pieces are not.
    """
    result = function(model, *args)
    if _SUMS_UNUSED or not torch.is_grad_enabled():
        return result
    inner = {p for part in model.modules() if isinstance(part, FSDPModule) for p in part.parameters()}
    whole = [p for p in model.parameters() if p.requires_grad and p not in inner]
    return cast(T, _with_tensors(result, whole))


def _with_tensors(result: Any, parameters: Iterable[nn.Parameter]) -> Any:
    """`result`, a tensor or a named tuple of them, with the first one hung on the parameters."""
    touched: Callable[..., Tensor] = _Touched.apply
    if isinstance(result, Tensor):
        return touched(result, *parameters)
    return type(result)(touched(result[0], *parameters), *result[1:])


class _Touched(torch.autograd.Function):
    """The first tensor as it is; all others get a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *others: Tensor) -> Tensor:
        ctx.save_for_backward(*others)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(other) for other in ctx.saved_tensors)
