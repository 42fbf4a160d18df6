"""What all backends share of an optimizer: its state, its schedule, and what becomes of updates that cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import OptimizerConfig
from lightrft.strategy.base import Saved
from lightrft.strategy.optimizers import (
    build_optimizer,
    numbers_of,
    set_steps,
    steps_taken,
    take_numbers,
    tensors_of,
)
from lightrft.strategy.scaling import LossScale
from lightrft.strategy.schedule_free import Averaging, ScheduleFree, check_beta
from lightrft.strategy.schedules import schedule

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a gradient."""


def check_shapes(saved: Mapping[str, tuple[int, ...]], own: Mapping[str, Tensor]) -> None:
    """ValueError if the tensors of a checkpoint are not those of this model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    odd = sorted(n for n in saved.keys() | shapes.keys() if saved.get(n) != shapes.get(n))
    if odd:
        raise ValueError(
            f"the checkpoint is of another model: {odd[0].partition('/')[2]} has shape {saved.get(odd[0], 'none')} there and "
            f"{shapes.get(odd[0], 'none')} here. Set model.path (of a critic critic.path), model.lora and model.freeze as they were."
        )


def learning(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that learn, with their names. ValueError if there are none."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("no parameter of the model is trainable.")
    return named


class Learner:
    """An optimizer over named float32 weights, whole ones or pieces (DTensor)."""

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        total_updates: int,
        scaling: LossScale | None = None,
    ) -> None:
        """`scaling`: of the losses that are told by `scaled`; None for none."""
        self.scaling = scaling
        self._named = list(named)
        self.parameters = [parameter for _, parameter in self._named]
        self.optimizer = build_optimizer(self._named, config)
        self.progress = Progress(config, total_updates)
        self._averaging: Averaging | None = None
        if isinstance(self.optimizer, ScheduleFree):
            self._averaging = Averaging(self.optimizer, self.parameters)

    @property
    def is_averaged(self) -> bool:
        """Whether the parameters hold the optimizer's average now."""
        return self._averaging is not None and self._averaging.inside

    def averaged(self, publish: Callable[[], None] = lambda: None) -> AbstractContextManager[None]:
        """See Trainable.averaged; `publish` is called when the parameters have changed."""
        return nullcontext() if self._averaging is None else self._averaging(publish)

    def gradients(self) -> list[Tensor]:
        """Gradients of the parameters that have one."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]

    def scaled(self, loss: Tensor) -> Tensor:
        """What to differentiate in place of the loss."""
        return loss if self.scaling is None else loss * self.scaling.value

    def unscaled(self, norm: float) -> float:
        """The norm of the gradient, of which that of the scaled loss has this one."""
        return norm if self.scaling is None else norm / self.scaling.value

    def step(self, norm: float) -> bool:
        """Clips, updates and clears the gradient. False, and no update, if `norm`, that of the loss itself, is not finite."""
        assert not self.is_averaged, "the average does not learn"
        rate, limit = self.progress.learning_rate(), self.progress.config.max_grad_norm
        share = self.unscaled(limit / norm if limit and norm > limit else 1.0)
        explained = self.scaling is not None and self.scaling.explains
        usable = self.progress.admits(norm, explained=explained)
        if self.scaling is not None:
            self.scaling.follow(finite=usable)
        if usable:
            if share != 1.0:
                torch._foreach_mul_(self.gradients(), share)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return usable

    def tensor_state(self) -> dict[str, Tensor]:
        """Weights in float32 as weights/NAME, and what the optimizer knows of them, such as exp_avg/NAME and exp_avg_sq/NAME, live."""
        found = {f"weights/{name}": parameter.detach() for name, parameter in self._named}
        return found | tensors_of(self.optimizer, self._named)

    def scalar_state(self) -> dict[str, Any]:
        """Version, schedule, number of steps taken, and other single numbers of the optimizer."""
        return {
            **self.progress.state(),
            "step": steps_taken(self.optimizer, self.parameters),
            "optimizer": self.progress.config.name,
            "numbers": numbers_of(self.optimizer, self._named),
            **({} if self._averaging is None else {"beta1": self.progress.config.betas[0]}),
            **({} if self.scaling is None else {"scaling": self.scaling.state()}),
        }

    @torch.no_grad()
    def load(self, saved: Saved, numbers: dict[str, Any]) -> None:
        """Takes weights, moments and numbers back. ValueError if they are of another model."""
        before, own = numbers.get("optimizer", "adamw"), self.progress.config
        if before != own.name:
            raise ValueError(
                f"{own.section}.name={own.name}: the checkpoint holds the state of {before}, which means nothing to it. Set {own.section}.name="
                f"{before}, or begin a new run from the weights."
            )
        check_beta(own, numbers)
        tensors = self.tensor_state()
        check_shapes(saved.shapes(), tensors)
        saved.into(tensors)
        set_steps(self.optimizer, self.parameters, numbers["step"])
        take_numbers(self.optimizer, self._named, numbers.get("numbers", {}))
        self.progress.load(numbers)
        if self.scaling is not None and "scaling" in numbers:
            self.scaling.load(numbers["scaling"])


@dataclass
class Progress:
    """How far an optimizer has come."""

    config: OptimizerConfig
    total: int
    """Updates of the whole run, for the schedule."""
    updates: int = 0
    """Tried so far."""
    version: int = 0
    """Made so far."""
    bad_in_a_row: int = 0

    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return self.config.learning_rate * schedule(self.config, self.total)(self.updates)

    def admits(self, norm: float, *, explained: bool = False) -> bool:
        """Counts an update with this gradient norm, and whether it may be made. FloatingPointError after
        optimizer.max_bad_steps in a row that may not, those apart whose norm is `explained` by the scale of the loss."""
        self.updates += 1
        if math.isfinite(norm):
            self.bad_in_a_row = 0
            self.version += 1
            return True
        if explained:
            return False
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= self.config.max_bad_steps:
            raise FloatingPointError(
                f"{self.bad_in_a_row} optimizer steps in a row had a NaN or infinite loss or gradient "
                f"(optimizer.max_bad_steps={self.config.max_bad_steps}). Lower optimizer.learning_rate="
                f"{self.config.learning_rate:g}, or look at the capsules of the run with `lightrft replay`."
            )
        return False

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"updates": self.updates, "version": self.version, "bad_in_a_row": self.bad_in_a_row}

    def load(self, state: dict[str, int]) -> None:
        """Takes a `state` back."""
        self.updates, self.version = state["updates"], state["version"]
        self.bad_in_a_row = state["bad_in_a_row"]
