"""One process, one device. Also the oracle that other backends are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightrft.config import OptimizerConfig, StrategyConfig
from lightrft.models.lora import is_adapted, merged_adapters, plain_weights
from lightrft.models.source import Source
from lightrft.strategy.base import Saved, Trainable
from lightrft.strategy.ema import follow
from lightrft.strategy.footprint import EXACT, Footprint, Sizes
from lightrft.strategy.memory import Resident, Tensors
from lightrft.strategy.optimizer import Learner, learning
from lightrft.strategy.optimizers import state_bytes
from lightrft.strategy.scaling import LossScale, loss_scale

T = TypeVar("T")


@dataclass
class Single:
    """The strategy for one process."""

    config: StrategyConfig
    device: torch.device
    shards: bool = False

    def trainable(self, source: Source, config: OptimizerConfig, total_updates: int) -> SingleTrainable:
        """A whole model on this device, with its optimizer."""
        return SingleTrainable(source.full(self.device), config, total_updates, self._moves())

    def frozen(self, source: Source) -> SingleFrozen:
        """A whole model on this device whose weights no gradient changes."""
        return SingleFrozen(source.full(self.device).requires_grad_(False), self.device, self._moves())

    @staticmethod
    def footprint(config: StrategyConfig, sizes: Sizes, processes: int, *, learns: bool) -> Footprint:  # noqa: ARG004  # as Strategy has it
        """The whole model; a smaller type than float32 learns through float32 weights beside its own."""
        if not learns:
            return Footprint(sizes.weight_bytes)
        masters = EXACT * sizes.learned_narrow
        return Footprint(sizes.weight_bytes, sizes.optimizer_state + masters, EXACT * sizes.learned)

    def _moves(self) -> bool:
        return self.config.offload and self.device.type != "cpu"


class SingleTrainable:
    """A module with AdamW. A bfloat16 or float16 module learns through float32 master weights and float32 gradients."""

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, total_updates: int, moves: bool = False
    ) -> None:
        self.module, self._moves = module, moves
        self._named = learning(module)
        self._masters: list[nn.Parameter] = [self._master(p) for _, p in self._named]
        names = [name for name, _ in self._named]
        self._learner = Learner(
            list(zip(names, self._masters, strict=True)),
            config,
            total_updates,
            loss_scale(next(module.parameters()).dtype),
        )
        self.optimizer = self._learner.optimizer

    @property
    def scaling(self) -> LossScale | None:
        """What scales the loss, of a float16 module."""
        return self._learner.scaling

    @property
    def version(self) -> int:
        """Optimizer steps the weights have seen."""
        return self._learner.progress.version

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(module, *args)."""
        return function(self.module, *args)

    def _master(self, parameter: nn.Parameter) -> nn.Parameter:
        """The float32 weights the optimizer changes: the parameter itself, unless it is of a smaller type."""
        if parameter.dtype not in (torch.bfloat16, torch.float16):
            return parameter
        master = nn.Parameter(parameter.detach().float())

        def collect(p: Tensor) -> None:
            assert p.grad is not None
            master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
            p.grad = None

        parameter.register_post_accumulate_grad_hook(collect)
        return master

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient to what has accumulated."""
        self._learner.scaled(loss).backward()

    def gradient_norm(self) -> float:
        """Global norm of the accumulated gradient, before clipping; 0 where there is none."""
        grads = self._learner.gradients()
        return self._learner.unscaled(float(torch.nn.utils.get_total_norm(grads))) if grads else 0.0

    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return self._learner.progress.learning_rate()

    def step(self, norm: float) -> bool:
        """FloatingPointError after optimizer.max_bad_steps skipped updates in a row."""
        usable = self._learner.step(norm)
        if usable:
            self._publish()
        return usable

    @torch.no_grad()
    def _publish(self) -> None:
        for (_, parameter), master in zip(self._named, self._masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names."""
        yield from plain_weights(self.module)

    def adapters_merged(self) -> AbstractContextManager[None]:
        """Inside, adapters are folded into the weights."""
        return merged_adapters(self.module)

    @property
    def is_averaged(self) -> bool:
        """Whether it has the optimizer's average now."""
        return self._learner.is_averaged

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are the average of an optimizer that keeps one."""
        return self._learner.averaged(self._publish)

    def parts(self) -> dict[str, Resident]:
        """Weights, and the optimizer's state with the float32 master weights, as residents."""
        device = str(self._named[0][1].device)
        own = [m for (_, p), m in zip(self._named, self._masters, strict=True) if p is not m]

        def optimizer() -> list[Tensor]:
            return own + [
                t
                for s in self.optimizer.state.values()
                for t in s.values()
                if isinstance(t, Tensor) and t.dim()
            ]

        named = [(name, m) for (name, _), m in zip(self._named, self._masters, strict=True)]
        planned = state_bytes(named, self._learner.progress.config) + sum(m.nbytes for m in own)
        return {
            "weights": Tensors(lambda: list(self.module.parameters()), device, moves=self._moves),
            "optimizer": Tensors(optimizer, device, moves=self._moves, planned_bytes=planned),
        }

    def tensor_state(self) -> dict[str, Tensor]:
        """Weights and moments in float32 as weights/NAME, exp_avg/NAME and exp_avg_sq/NAME, live."""
        return self._learner.tensor_state()

    def scalar_state(self) -> dict[str, Any]:
        """Version, schedule and number of steps taken."""
        return self._learner.scalar_state()

    def load(self, saved: Saved, numbers: dict[str, Any]) -> None:
        """Takes weights, moments and numbers back, and computes with them."""
        self._learner.load(saved, numbers)
        self._publish()


@dataclass
class SingleFrozen:
    """A module that only answers."""

    module: nn.Module
    device: torch.device
    moves: bool = False
    _exact: dict[str, Tensor] = field(default_factory=dict)
    """Weights in float32 of a module of a smaller type that follows slowly: its own would lose small steps."""

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(module, *args)."""
        return function(self.module, *args)

    def parts(self) -> dict[str, Resident]:
        """The weights, as a resident."""
        return {
            "weights": Tensors(lambda: list(self.module.parameters()), str(self.device), moves=self.moves)
        }

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """Moves each weight by `share` of its distance to the given one; sums are kept in float32."""
        follow(dict(self.module.named_parameters()), weights, share, self._exact, exact_on="cpu")

    def tensor_state(self) -> dict[str, Tensor]:
        """The weights as weights/NAME, the float32 copy of each where there is one."""
        return {f"weights/{n}": self._exact.get(n, p.detach()) for n, p in self.module.named_parameters()}

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        """Takes the weights from a checkpoint, with a float32 copy where they are kept in less."""
        for name, parameter in self.module.named_parameters():
            exact = parameter.detach().float().cpu()
            saved.into({f"weights/{name}": exact})
            parameter.copy_(exact)
            if parameter.dtype is not torch.float32:
                self._exact[name] = exact


@dataclass
class WithoutAdapters:
    """The model an adapted actor started from: the actor itself with its adapters switched off, at no memory."""

    actor: Trainable

    def __post_init__(self) -> None:
        if not is_adapted(self.actor.module):
            raise ValueError("only a model with adapters holds its own reference")

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(module, *args) with the actor's adapters switched off."""
        adapted: Any = self.actor.module
        with adapted.disable_adapter():
            return self.actor.compute(function, *args)

    def parts(self) -> dict[str, Resident]:
        """No residents: the weights are the actor's."""
        return {}

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:  # noqa: ARG002  # as Frozen has it
        """Raises ValueError: these weights cannot follow others, which the configuration raises first."""
        raise ValueError("a reference that is the model without its adapters cannot follow the policy")

    def tensor_state(self) -> dict[str, Tensor]:
        """Nothing: the weights come from their source."""
        return {}

    def load(self, saved: Saved) -> None:
        """Nothing is taken back: a frozen model comes from its source."""
