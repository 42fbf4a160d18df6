"""What a backend provides: models that learn, models that only answer. Structural protocols; nothing to inherit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightrft.config import OptimizerConfig, StrategyConfig
from lightrft.models.source import Source
from lightrft.parallel.status import STATUS
from lightrft.strategy.footprint import Footprint, Sizes
from lightrft.strategy.memory import Resident
from lightrft.strategy.scaling import LossScale

T = TypeVar("T")


class Saved(Protocol):
    """The tensors of one model in a checkpoint, whoever wrote it, on whatever number of ranks."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Their names and whole shapes."""
        ...

    def into(self, tensors: dict[str, Tensor]) -> None:
        """Copies them into these, plain or sharded (DTensor); called by all ranks."""
        ...


class Trainable(Protocol):
    """A model with its optimizer."""

    module: nn.Module
    """For its structure. Its weights may be in pieces: what computes with them goes through `compute`."""

    @property
    def scaling(self) -> LossScale | None:
        """What scales the losses given to `backward`, and is undone in `gradient_norm` and `step`; None where nothing does."""
        ...

    @property
    def version(self) -> int:
        """Optimizer steps its weights have seen."""
        ...

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(module, *args), a tensor or a tuple of tensors, with the weights at hand; by all ranks equally often."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient; what accumulates is the SUM over calls and ranks."""
        ...

    def gradient_norm(self) -> float:
        """Global norm of the accumulated gradient, before clipping."""
        ...

    def step(self, norm: float) -> bool:
        """Clips, updates, moves the schedule on, clears the gradient. False, and no update, if `norm` is not finite."""
        ...

    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names, one at a time; called by all ranks."""
        ...

    def adapters_merged(self) -> AbstractContextManager[None]:
        """Inside, `module` holds the weights that an engine should see (adapters folded in)."""
        ...

    @property
    def is_averaged(self) -> bool:
        """Whether this is inside `averaged`, of an optimizer that keeps an average."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are evaluated and saved: the average of an optimizer that keeps one (schedule_free),
        otherwise those it has. Afterwards it has the same as before, to the bit. Nothing learns inside; called by all ranks."""
        ...

    def parts(self) -> dict[str, Resident]:
        """The model's residents: weights, optimizer."""
        ...

    def tensor_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: weights/NAME, exp_avg/NAME and exp_avg_sq/NAME of all that learns, live.

        Plain tensors or, sharded, DTensors; a rank may leave out what another one has whole. float32 whatever the model
        computes in. The same for every backend, so that each can go on from the others' checkpoints.
        """
        ...

    def scalar_state(self) -> dict[str, Any]:
        """The rest of its state, the same on all ranks."""
        ...

    def load(self, saved: Saved, numbers: dict[str, Any]) -> None:
        """Takes both back; called by all ranks. ValueError if they are of another model."""
        ...


class Frozen(Protocol):
    """A model that only answers: the reference, a teacher."""

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """Result of `function`, computed with the weights as by Trainable.compute."""
        ...

    def parts(self) -> dict[str, Resident]:
        """The model's residents: weights, or none where it shares another's."""
        ...

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """Each weight w becomes w + share * (given - w); 1 takes the given ones. Names as in Trainable.weights."""
        ...

    def tensor_state(self) -> dict[str, Tensor]:
        """The model's weights as weights/NAME, to go on from where it has followed another; see Trainable.tensor_state."""
        ...

    def load(self, saved: Saved) -> None:
        """Takes them back; called by all ranks."""
        ...


class Strategy(Protocol):
    """Makes models of either kind on this process's device."""

    device: torch.device
    shards: bool
    """Whether a process holds pieces of weights only, so that an engine in it needs weights of its own."""

    def trainable(self, source: Source, config: OptimizerConfig, total_updates: int) -> Trainable:
        """`total_updates`: optimizer steps of the whole run, for the schedule."""
        ...

    def frozen(self, source: Source) -> Frozen:
        """A model whose weights no gradient changes."""
        ...

    @staticmethod
    def footprint(config: StrategyConfig, sizes: Sizes, processes: int, *, learns: bool) -> Footprint:
        """What each of so many processes would hold of such a model, asked of the class: nothing has been made yet."""
        ...


def need_processes(backend: str) -> None:
    """ValueError if this process has not been started with others, as a backend that shares the model out needs it."""
    if not dist.is_initialized():
        raise ValueError(
            f"strategy.backend={backend} needs processes that know each other. Start with --processes N (or --gpus N), or by "
            "torchrun; for a single process take strategy.backend=single."
        )


class Root(nn.Module):
    """The one module that a sharding backend wraps: all that is computed with the model's weights happens in its forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., T], *args: Any) -> T:
        """function(model, *args)."""
        STATUS.heartbeat()
        return function(self.model, *args)
