"""Host memory that belongs to tensors which come and go: made once, page-locked where the device is CUDA, and used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lightrft.utils.device import can_lock_pages, synchronize


class Twins:
    """A place in host memory for each tensor that was ever moved out; it lasts as long as the tensor.

    torch rounds page-locked memory up to a power of 2 for each tensor.

    From page-locked memory a device reads and writes by itself, several times as fast as through the copy that a driver makes
    of other memory. What is moved in is there for all that the device is told afterwards; what is moved out is waited for once, for
    all tensors together.
    """

    def __init__(self) -> None:
        self._twins: Any = WeakIdKeyDictionary()
        self.copied = 0
        """Bytes copied out and back so far."""

    def out(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor's numbers lie in its twin, and nothing of it on the device."""
        moved = [
            (tensor, tensor.device, self._twin(tensor)) for tensor in tensors if not self._is_out(tensor)
        ]
        for tensor, _, twin in moved:
            twin.copy_(tensor.detach(), non_blocking=True)
        for device in {device for _, device, _ in moved}:
            synchronize(device)
        for tensor, _, twin in moved:
            tensor.data = twin
            self.copied += twin.nbytes

    def back(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Each tensor that is out is on the device; its twin is kept for the next time."""
        for tensor in tensors:
            if self._is_out(tensor):
                locked = can_lock_pages(device)
                tensor.data = self._twins[tensor].to(device, non_blocking=locked, copy=True)
                self.copied += tensor.nbytes
            elif tensor.device.type != device.type:  # made in host memory, by loading a checkpoint
                tensor.data = tensor.data.to(device)
                self.copied += tensor.nbytes

    def nbytes(self) -> int:
        """Host memory held."""
        return sum(twin.nbytes for twin in self._twins.values())

    def _is_out(self, tensor: Tensor) -> bool:
        twin = self._twins.get(tensor)
        return twin is not None and twin.data_ptr() == tensor.data_ptr()

    def _twin(self, tensor: Tensor) -> Tensor:
        twin: Tensor | None = self._twins.get(tensor)
        if twin is None or twin.shape != tensor.shape or twin.dtype != tensor.dtype:
            locked = can_lock_pages(tensor.device)
            twin = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=locked)
            self._twins[tensor] = twin
        return twin
