"""Host memory that belongs to tensors which come and go: made once, page-locked where the device is CUDA, and used again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lightrft.utils.device import Copies, available_bytes, can_lock_pages, is_out_of_memory
from lightrft.utils.errors import RolloutError


class NoHostRoomError(RolloutError, RuntimeError):
    """Host memory is used up: there is no place for what a phase does not need."""

    boundary = "memory"


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
        """The twin of a tensor, made if there is none that fits. NoHostRoomError if there is no host memory for it."""
        twin: Tensor | None = self._twins.get(tensor)
        if twin is None or twin.shape != tensor.shape or twin.dtype != tensor.dtype:
            locked = can_lock_pages(tensor.device)
            try:
                twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=locked)
            except (RuntimeError, MemoryError) as error:
                raise NoHostRoomError(self._full(tensor, "page-locked " * locked)) from error
            self._twins[tensor] = twin
        return twin

    def _full(self, tensor: Tensor, kind: str) -> str:
        """What to say where a tensor finds no twin: not that memory has run out, which would be taken for the device's."""
        free = available_bytes(torch.device("cpu"))
        return (
            f"strategy.offload=true: no {kind}host memory for {tensor.nbytes / 2**30:.2f} GiB that a phase does not need; these tensors hold "
            f"{self.nbytes() / 2**30:.2f} GiB of it already, and {free / 2**30:.2f} GiB are free. Set strategy.offload=false, start fewer "
            "processes on this machine, or let it lock more memory (ulimit -l)."
        )


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


def exchange(
    leaving: Iterable[Leaving], arriving: Iterable[Arriving], release: Callable[[], None] = lambda: None
) -> None:
    """Moves tensors out to their twins, and others back from theirs at the same time.

    A tensor comes only when as many bytes have gone, so that the device never holds more than before or after. The device is waited
    for once for each tensor that goes; those that come are there for all that the device is told afterwards. Freed blocks may be of other
    sizes than those that come: where one finds no room, all that goes goes first, `release` gives freed memory back, and then it comes.
    NoHostRoomError, before anything has moved, if host memory does not suffice.
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
        _swap(going, coming, release)
    finally:
        for link in links:
            link.end()


def _swap(
    going: Sequence[tuple[Twins, Tensor, Tensor]],
    coming: deque[tuple[Twins, Tensor, torch.device]],
    release: Callable[[], None],
) -> None:
    """Sends all that goes on its way, and begins to bring what comes as room is made."""
    done = [link_of(tensor.device).out.copy(twin, tensor.detach()) for _, tensor, twin in going]
    room, fits = 0, True
    for (twins, tensor, twin), wait in zip(going, done, strict=True):
        wait()
        made = twin.nbytes if coming and tensor.device.type == coming[0][2].type else 0
        tensor.data = twin
        twins.copied += twin.nbytes
        room += made
        while fits and coming and coming[0][1].nbytes <= room:
            fits = _comes(*coming[0])
            if fits:
                room -= coming.popleft()[1].nbytes
    for each in coming:
        if not _comes(*each):
            release()
            _come(*each)


def _comes(twins: Twins, tensor: Tensor, device: torch.device) -> bool:
    """Begins to bring a tensor to the device; False where it finds no room."""
    try:
        _come(twins, tensor, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _come(twins: Twins, tensor: Tensor, device: torch.device) -> None:
    """Begins to bring a tensor to the device."""
    if twins.is_out(tensor):
        there = torch.empty_like(tensor, device=device)
        link_of(device).back.copy(there, tensor.detach())
        tensor.data = there
    else:  # made in host memory, by loading a checkpoint
        tensor.data = tensor.data.to(device)
    twins.copied += tensor.nbytes
