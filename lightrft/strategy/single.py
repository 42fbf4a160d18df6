"""One process, one device. Also the oracle that other backends are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import OptimizerConfig, StrategyConfig
from lightrft.models.load import is_adapted, merged_adapters, plain_state
from lightrft.strategy.colocate import Resident, Tensors


@dataclass
class Single:
    """The strategy for one process."""

    config: StrategyConfig
    device: torch.device

    def trainable(self, module: nn.Module, config: OptimizerConfig, total_updates: int) -> SingleTrainable:
        """See Strategy."""
        return SingleTrainable(module, config, total_updates, self._moves())

    def frozen(self, module: nn.Module) -> SingleFrozen:
        """See Strategy."""
        return SingleFrozen(module.requires_grad_(False), self.device, self._moves())

    def _moves(self) -> bool:
        return self.config.offload and self.device.type != "cpu"


class SingleTrainable:
    """A module with AdamW. A bfloat16 module learns through float32 master weights and float32 gradients."""

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, total_updates: int, moves: bool = False
    ) -> None:
        self.module, self.version, self._config, self._moves = module, 0, config, moves
        self._named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        if not self._named:
            raise ValueError("no parameter of the model is trainable.")
        self._masters: list[nn.Parameter] = [self._master(p) for _, p in self._named]
        decayed = [m for m in self._masters if m.dim() > 1]
        plain = [m for m in self._masters if m.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            fused=True,
        )
        self._rate = schedule(config, total_updates)
        self._updates = 0
        self._bad_in_a_row = 0

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
        return self._config.learning_rate * self._rate(self._updates)

    def step(self, norm: float) -> bool:
        """See Trainable. FloatingPointError after optimizer.max_bad_steps skipped updates in a row."""
        rate = self.rate()
        self._updates += 1
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            self._bad_in_a_row += 1
            if self._bad_in_a_row >= self._config.max_bad_steps:
                raise FloatingPointError(
                    f"{self._bad_in_a_row} optimizer steps in a row had a NaN or infinite loss or gradient "
                    f"(optimizer.max_bad_steps={self._config.max_bad_steps}). Lower optimizer.learning_rate="
                    f"{self._config.learning_rate:g}, or look at the capsules of the run with `lightrft replay`."
                )
            return False
        self._bad_in_a_row = 0
        limit = self._config.clip_norm
        if limit and norm > limit:
            torch._foreach_mul_([m.grad for m in self._masters if m.grad is not None], limit / norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._publish()
        self.version += 1
        return True

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

    def state(self) -> dict[str, Any]:
        """See Trainable. Tensors are the live ones: write them down before the next step."""
        return {
            "weights": {n: m.detach() for (n, _), m in zip(self._named, self._masters, strict=True)},
            "optimizer": self.optimizer.state_dict(),
            "updates": self._updates,
            "version": self.version,
            "bad_in_a_row": self._bad_in_a_row,
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """See Trainable. ValueError if the state is of another model."""
        have = {n: tuple(m.shape) for (n, _), m in zip(self._named, self._masters, strict=True)}
        given = {n: tuple(w.shape) for n, w in state["weights"].items()}
        odd = sorted(n for n in have.keys() | given.keys() if have.get(n) != given.get(n))
        if odd:
            raise ValueError(
                f"the checkpoint is of another model: {odd[0]} has shape {given.get(odd[0], 'none')} there and "
                f"{have.get(odd[0], 'none')} here. Set model.path and model.lora as they were."
            )
        for (name, _), master in zip(self._named, self._masters, strict=True):
            master.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._updates, self.version = state["updates"], state["version"]
        self._bad_in_a_row = state["bad_in_a_row"]
        self._publish()


@dataclass
class SingleFrozen:
    """A module that only answers."""

    module: nn.Module
    device: torch.device
    moves: bool = False
    _exact: dict[str, Tensor] = field(default_factory=dict)
    """Weights in float32 of a module of a smaller type that follows slowly: its own would lose small steps."""

    def active(self) -> AbstractContextManager[None]:
        """See Frozen."""
        return nullcontext()

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

    def state(self) -> dict[str, Tensor]:
        """See Frozen."""
        return {n: self._exact.get(n, p.detach()) for n, p in self.module.named_parameters()}

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """See Frozen."""
        for name, parameter in self.module.named_parameters():
            parameter.copy_(state[name])
            if state[name].dtype is not parameter.dtype:
                self._exact[name] = state[name].cpu()


@dataclass
class WithoutAdapters:
    """The model an adapted actor started from: the actor itself with its adapters switched off, at no memory."""

    module: nn.Module

    def __post_init__(self) -> None:
        if not is_adapted(self.module):
            raise ValueError("only a model with adapters holds its own reference")

    def active(self) -> AbstractContextManager[None]:
        """See Frozen."""
        adapted: Any = self.module
        return adapted.disable_adapter()  # type: ignore[no-any-return]

    def parts(self) -> dict[str, Resident]:
        """See Frozen."""
        return {}

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """See Frozen. It cannot: ValueError, which the configuration raises first."""
        raise ValueError("a reference that is the model without its adapters cannot follow the policy")

    def state(self) -> dict[str, Tensor]:
        """See Frozen. Nothing of its own."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """See Frozen."""


def schedule(config: OptimizerConfig, total_updates: int) -> Callable[[int], float]:
    """Share of the peak learning rate at update 0, 1, ..., total_updates - 1.

    Warm-up rises over `warmup_steps` updates and reaches 1 at the last of them; linear and cosine then fall to
    `final_fraction` at the last update.
    """
    warmup, final = config.warmup_steps, config.final_fraction

    def rate(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        if config.schedule == "constant":
            return 1.0
        done = min(1.0, (update - warmup) / max(1, total_updates - 1 - warmup))
        fall = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return final + (1 - final) * fall

    return rate
