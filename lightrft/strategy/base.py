"""What a backend provides: models that learn, models that only answer. Structural protocols; nothing to inherit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from lightrft.config import OptimizerConfig
from lightrft.strategy.colocate import Resident


class Trainable(Protocol):
    """A model with its optimizer."""

    module: nn.Module
    version: int
    """Optimizer steps its weights have seen."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient; what accumulates is the SUM over calls and ranks."""
        ...

    def gradient_norm(self) -> float:
        """Global norm of the accumulated gradient, before clipping."""
        ...

    def step(self, norm: float) -> bool:
        """Clips, updates, moves the schedule on, clears the gradient. False, and no update, if `norm` is not finite."""
        ...

    def rate(self) -> float:
        """Learning rate of the next update."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names, one at a time; called by all ranks."""
        ...

    def merged(self) -> AbstractContextManager[None]:
        """Inside, `module` holds the weights that an engine should see (adapters folded in)."""
        ...

    def parts(self) -> dict[str, Resident]:
        """Its residents: weights, optimizer."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: weights, optimizer, schedule."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back."""
        ...


class Frozen(Protocol):
    """A model that only answers: the reference, a teacher."""

    module: nn.Module

    def active(self) -> AbstractContextManager[None]:
        """Inside, `module` computes what this model stands for."""
        ...

    def parts(self) -> dict[str, Resident]:
        """Its residents: weights, or none where it shares another's."""
        ...

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """Each weight w becomes w + share * (given - w); 1 takes the given ones. Names as in Trainable.weights."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Its weights by name, to go on from where it has followed another."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes a `state` back."""
        ...


class Strategy(Protocol):
    """Makes models of either kind on this process's device."""

    def trainable(self, module: nn.Module, config: OptimizerConfig, total_updates: int) -> Trainable:
        """`total_updates`: optimizer steps of the whole run, for the schedule."""
        ...

    def frozen(self, module: nn.Module) -> Frozen:
        """A model whose weights never change."""
        ...
