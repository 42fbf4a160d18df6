"""What a computation keeps, takes and multiplies, read off it on torch's meta device: nothing is computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightrft.commands.plan.shape import Flash

Run = Callable[[], Any]
"""A computation on the meta device."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a forward pass leaves behind for the backward pass."""

    whole: int
    outside: int
    """What of them is not made within a block."""
    entering: int
    """What the blocks are given: all that is kept of them where they are computed again (model.gradient_checkpointing)."""
    largest: int
    """What the block keeps that keeps most."""


class _Flash(TorchFunctionMode):
    """Attention that keeps what fused kernels keep, and never a matrix of scores."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return Flash.apply(given["query"], given["key"], given["value"])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Memory that these tensors stand in -> its bytes."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


def own(module: nn.Module) -> dict[int, int]:
    """The memory of a module's weights and buffers, which no pass takes anew."""
    return storages([*module.parameters(), *module.buffers()])


def kept(module: nn.Module, blocks: Iterable[nn.Module], forward: Run) -> Kept:
    """What `forward`, a pass through `module` that makes its graph, keeps; `blocks` are parts of it, none within another."""
    mine, found, within = own(module), dict[int, int](), dict[int, dict[int, int]]()
    entering, now, alive = dict[int, int](), list[int](), list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        for key, size in storages([tensor]).items():
            if key not in mine:
                alive.append(tensor)  # so that its memory is not given to another
                if key not in found and now:
                    within.setdefault(now[-1], {})[key] = size
                found[key] = size
        return tensor

    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        now.append(id(block))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        alive.extend(given)
        entering.update({key: size for key, size in storages(given).items() if key not in mine})

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(lambda *_: [now.pop(), None][1]).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        stack.enter_context(_Flash())
        out = forward()
    del out
    inside = [sum(each.values()) for each in within.values()]
    whole = sum(found.values())
    return Kept(whole, whole - sum(inside), sum(entering.values()), max(inside, default=0))


class _Live(TorchDispatchMode):
    """Counts the memory that tensors made within it stand in, as long as one of them lives."""

    def __init__(self, mine: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mine, self.now, self.most = mine, 0, 0
        self._holders: dict[int, int] = {}
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.mine or id(tensor) in self._known:
            return
        if not self._holders.get(key):
            self.now += size
            self.most = max(self.most, self.now)
        self._holders[key] = self._holders.get(key, 0) + 1
        self._known.add(id(tensor))
        weakref.finalize(tensor, self._drop, id(tensor), key, size).atexit = False

    def _drop(self, tensor: int, key: int, size: int) -> None:
        self._known.discard(tensor)
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= size


def peak(module: nn.Module, compute: Run) -> int:
    """The most bytes that `compute` takes at once beside the weights of `module`, without gradients."""
    live = _Live(own(module))
    with torch.no_grad(), _Flash(), live:
        compute()
    return live.most


def flops(compute: Run) -> int:
    """Operations of the matrix products and convolutions of `compute`, two for each product; without gradients."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        compute()
    return int(counter.get_total_flops())
