"""Host memory that belongs to tensors which come and go: made once, page-locked where the device is CUDA, and used again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lightrft.utils.device import Copies, can_lock_pages


class Twins:
    """A place in host memory for each tensor that was ever moved out; it lasts as long as the tensor.

    torch rounds page-locked memory up to a power of 2 for each tensor.

    From page-locked memory a device reads and writes by itself, several times as fast as through the copy that a driver makes
    of other memory. `exchange` moves tensors.
    """

    def __init__(self) -> None:
        self._twins: Any = WeakIdKeyDictionary()
        self.copied = 0
        """Bytes copied out and back so far."""

    def out(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor's numbers lie in its twin, and nothing of it on the device."""
        exchange([(self, tensors)], [])

    def back(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Each tensor that is out is on the device for all that it is told afterwards; its twin is kept for the next time."""
        exchange([], [(self, tensors, device)])

    def nbytes(self) -> int:
        """Host memory held."""
        return sum(twin.nbytes for twin in self._twins.values())

    def is_out(self, tensor: Tensor) -> bool:
        """Whether a tensor's numbers lie in its twin."""
        twin = self._twins.get(tensor)
        return twin is not None and twin.data_ptr() == tensor.data_ptr()

    def of(self, tensor: Tensor) -> Tensor:
        """The twin of a tensor, made if there is none that fits."""
        twin: Tensor | None = self._twins.get(tensor)
        if twin is None or twin.shape != tensor.shape or twin.dtype != tensor.dtype:
            locked = can_lock_pages(tensor.device)
            twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=locked)
            self._twins[tensor] = twin
        return twin


class Link:
    """The two directions between host memory and a device, which do not wait for each other."""

    def __init__(self, device: torch.device) -> None:
        self.out, self.back = Copies(device), Copies(device)
        self._spent, self._exchanges = 0.0, 0

    def begin(self) -> None:
        """Before the copies of an exchange."""
        self.out.begin()
        self.back.begin()

    def end(self) -> None:
        """After them."""
        self.out.end()
        self.back.end()
        self._exchanges += 1
        if self._exchanges % 100 == 0:
            self.seconds()  # where nobody asks, what they are told from must not pile up

    def seconds(self) -> float:
        """Time that all exchanges took so far, each until its slower direction was done."""
        self._spent += sum(map(max, self.out.spans(), self.back.spans()))
        return self._spent


@cache
def link_of(device: torch.device) -> Link:
    """The one link of a device."""
    return Link(device)


Leaving = tuple[Twins, Sequence[Tensor]]
Arriving = tuple[Twins, Sequence[Tensor], torch.device]


def exchange(leaving: Iterable[Leaving], arriving: Iterable[Arriving]) -> None:
    """Moves tensors out to their twins, and others back from theirs at the same time.

    A tensor comes only when as many bytes have gone, so that the device never holds more than before or after. The device is waited
    for once for each tensor that goes; those that come are there for all that the device is told afterwards.
    """
    going = [
        (twins, tensor, twins.of(tensor))
        for twins, ts in leaving
        for tensor in ts
        if not twins.is_out(tensor)
    ]
    coming = deque(
        (twins, tensor, device)
        for twins, ts, device in arriving
        for tensor in ts
        if twins.is_out(tensor) or tensor.device.type != device.type
    )
    links = {link_of(d): None for d in [*(t.device for _, t, _ in going), *(d for *_, d in coming)]}
    for link in links:
        link.begin()
    try:
        _swap(going, coming)
    finally:
        for link in links:
            link.end()


def _swap(
    going: Sequence[tuple[Twins, Tensor, Tensor]], coming: deque[tuple[Twins, Tensor, torch.device]]
) -> None:
    """Sends all that goes on its way, and begins to bring what comes as room is made."""
    done = [link_of(tensor.device).out.copy(twin, tensor.detach()) for _, tensor, twin in going]
    room = 0
    for (twins, tensor, twin), wait in zip(going, done, strict=True):
        wait()
        tensor.data = twin
        twins.copied += twin.nbytes
        room += twin.nbytes
        while coming and coming[0][1].nbytes <= room:
            room -= _come(*coming.popleft())
    for each in coming:
        _come(*each)


def _come(twins: Twins, tensor: Tensor, device: torch.device) -> int:
    """Begins to bring a tensor to the device; its bytes."""
    if twins.is_out(tensor):
        there = torch.empty_like(tensor, device=device)
        link_of(device).back.copy(there, tensor.detach())
        tensor.data = there
    else:  # made in host memory, by loading a checkpoint
        tensor.data = tensor.data.to(device)
    twins.copied += tensor.nbytes
    return tensor.nbytes
