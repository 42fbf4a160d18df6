"""The tensors of a model that lie in memory, as a checkpoint would give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightrft.strategy.base import Trainable
from lightrft.strategy.load_weights import rows


@dataclass(frozen=True)
class InMemory:
    """Whole tensors by name. See Saved."""

    tensors: Mapping[str, Tensor]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def into(self, tensors: dict[str, Tensor]) -> None:
        """Copies the tensors into these, plain or sharded ones."""
        for name, tensor in tensors.items():
            mine, start, stop = rows(tensor)
            mine.copy_(self.tensors[name][start:stop] if tensor.dim() else self.tensors[name])


def snapshot(model: Trainable) -> dict[str, Any]:
    """All of a model's state as one nested state; its tensors are the live ones."""
    return {"tensors": model.tensor_state(), "numbers": model.scalar_state()}


def restore(model: Trainable, state: dict[str, Any]) -> None:
    """Takes a `snapshot` back."""
    model.load(InMemory(state["tensors"]), state["numbers"])
