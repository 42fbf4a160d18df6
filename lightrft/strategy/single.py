"""One process, one device. Also the oracle that other backends are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightrft.config import OptimizerConfig, StrategyConfig
from lightrft.models.load import is_adapted, merged_adapters, plain_state
from lightrft.models.source import Source
from lightrft.strategy.base import Saved, Trainable
from lightrft.strategy.colocate import Resident, Tensors
from lightrft.strategy.optimizer import Progress, adamw, check_shapes, moments, set_steps, steps_taken

T = TypeVar("T")


@dataclass
class Single:
    """The strategy for one process."""

    config: StrategyConfig
    device: torch.device
    shards: bool = False

    def trainable(self, source: Source, config: OptimizerConfig, total_updates: int) -> SingleTrainable:
        """See Strategy."""
        return SingleTrainable(source.full(self.device), config, total_updates, self._moves())

    def frozen(self, source: Source) -> SingleFrozen:
        """See Strategy."""
        return SingleFrozen(source.full(self.device).requires_grad_(False), self.device, self._moves())

    def _moves(self) -> bool:
        return self.config.offload and self.device.type != "cpu"


class SingleTrainable:
    """A module with AdamW. A bfloat16 module learns through float32 master weights and float32 gradients."""

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, total_updates: int, moves: bool = False
    ) -> None:
        self.module, self._moves = module, moves
        self._named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not self._named:
            raise ValueError("no parameter of the model is trainable.")
        self._masters: list[nn.Parameter] = [self._master(p) for _, p in self._named]
        self.optimizer = adamw(self._masters, config)
        self._progress = Progress(config, total_updates)

    @property
    def version(self) -> int:
        """See Trainable."""
        return self._progress.version

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """See Trainable."""
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
        """See Trainable."""
        loss.backward()

    def gradient_norm(self) -> float:
        """See Trainable."""
        grads = [m.grad for m in self._masters if m.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0

    def rate(self) -> float:
        """See Trainable."""
        return self._progress.rate()

    def step(self, norm: float) -> bool:
        """See Trainable. FloatingPointError after optimizer.max_bad_steps skipped updates in a row."""
        rate, limit = self.rate(), self._progress.config.clip_norm
        usable = self._progress.admits(norm)
        if usable:
            if limit and norm > limit:
                torch._foreach_mul_([m.grad for m in self._masters if m.grad is not None], limit / norm)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self._publish()
        self.optimizer.zero_grad(set_to_none=True)
        return usable

    @torch.no_grad()
    def _publish(self) -> None:
        for (_, parameter), master in zip(self._named, self._masters, strict=True):
            if parameter is not master:
                parameter.copy_(master)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See Trainable."""
        yield from plain_state(self.module).items()

    def merged(self) -> AbstractContextManager[None]:
        """See Trainable."""
        return merged_adapters(self.module)

    def parts(self) -> dict[str, Resident]:
        """See Trainable."""
        device = str(self._named[0][1].device)
        own = [m for (_, p), m in zip(self._named, self._masters, strict=True) if p is not m]

        def optimizer() -> list[Tensor]:
            return own + [t for s in self.optimizer.state.values() for t in s.values() if t.dim()]

        moments = 2 * sum(m.numel() * m.element_size() for m in self._masters)
        planned = moments + sum(m.numel() * m.element_size() for m in own)
        return {
            "weights": Tensors(lambda: list(self.module.parameters()), device, moves=self._moves),
            "optimizer": Tensors(optimizer, device, moves=self._moves, planned_bytes=planned),
        }

    def tensors(self) -> dict[str, Tensor]:
        """See Trainable."""
        pairs = [(name, master) for (name, _), master in zip(self._named, self._masters, strict=True)]
        found = {f"weights/{name}": master.detach() for name, master in pairs}
        for name, master in pairs:
            state = moments(self.optimizer, master)
            found |= {f"{moment}/{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
        return found

    def numbers(self) -> dict[str, Any]:
        """See Trainable."""
        return {**self._progress.state(), "step": steps_taken(self.optimizer, self._masters)}

    @torch.no_grad()
    def load(self, saved: Saved, numbers: dict[str, Any]) -> None:
        """See Trainable."""
        tensors = self.tensors()
        check_shapes(saved.shapes(), tensors)
        saved.into(tensors)
        set_steps(self.optimizer, self._masters, numbers["step"])
        self._progress.load(numbers)
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
        """See Frozen."""
        return function(self.module, *args)

    def parts(self) -> dict[str, Resident]:
        """See Frozen."""
        return {
            "weights": Tensors(lambda: list(self.module.parameters()), str(self.device), moves=self.moves)
        }

    @torch.no_grad()
    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """See Frozen."""
        own = dict(self.module.named_parameters())
        followed = set()
        for name, weight in weights:
            if name not in own:  # the second name of a tied weight, or no weight
                continue
            followed.add(name)
            if share == 1:
                own[name].copy_(weight)
                self._exact.pop(name, None)
            elif own[name].dtype is torch.float32:
                own[name].lerp_(weight, share)
            else:
                exact = self._exact.setdefault(name, own[name].float().cpu())
                own[name].copy_(exact.lerp_(weight.float().cpu(), share))
        if followed != own.keys():
            raise ValueError(
                f"the policy has no weight '{min(own.keys() - followed)}', which the reference has"
            )

    def tensors(self) -> dict[str, Tensor]:
        """See Frozen."""
        return {f"weights/{n}": self._exact.get(n, p.detach()) for n, p in self.module.named_parameters()}

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        """See Frozen."""
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
        """See Frozen."""
        adapted: Any = self.actor.module
        with adapted.disable_adapter():
            return self.actor.compute(function, *args)

    def parts(self) -> dict[str, Resident]:
        """See Frozen."""
        return {}

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """See Frozen. It cannot: ValueError, which the configuration raises first."""
        raise ValueError("a reference that is the model without its adapters cannot follow the policy")

    def tensors(self) -> dict[str, Tensor]:
        """See Frozen. Nothing of its own."""
        return {}

    def load(self, saved: Saved) -> None:
        """See Frozen."""
