"""Schedule-free AdamW: learns at one set of weights, y, and is measured, saved and exported at another, their average x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightrft.config import OptimizerConfig
from lightrft.strategy.base import Saved

NAME = "schedule_free"
"""What optimizer.name calls it."""


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, https://arxiv.org/abs/2405.15682, algorithm 1). With gradient g at y, step t and learning rate lr:

    v = b2 v + (1 - b2) g^2;  d = g / (sqrt(v / (1 - b2^t)) + eps) + weight_decay y
    z = z - lr d;  x = (1 - c) x + c z;  y = (1 - b1) z + b1 x;  c = w_t / (w_1 + ... + w_t), w_t = t^r max(lr_1 ... lr_t)^weight_lr_power

    As the authors' own program (schedulefree 1.4) has it: the paper puts the correction of v into lr, so that it would also scale weight decay and
    w_t. The parameters hold y, the state z and v; x follows from y and z (`average`). torch's other optimizers keep what groups of parameters
    share beside the state; here each parameter has its own count and sum, which go into checkpoints, and are right for one that has no gradient in some steps.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "r": r,
                "weight_lr_power": weight_lr_power,
            },
        )

    def meet(self, parameter: nn.Parameter) -> dict[str, Any]:
        """The state of a parameter, live; that before its first step if there is none."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state.update(
                step=0,
                weight_sum=0.0,
                lr_max=0.0,
                z=parameter.detach().clone(),
                exp_avg_sq=torch.zeros_like(parameter),
            )
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002  # as Optimizer has it
        """One update of all parameters with a gradient, which is used up."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        """All is computed number by number, so that a piece (DTensor) is changed as it would be as part of the whole."""
        state, (beta1, beta2), lr = self.meet(parameter), group["betas"], group["lr"]
        y, gradient, z, squares = map(_local, (parameter, parameter.grad, state["z"], state["exp_avg_sq"]))
        state["step"] += 1
        state["lr_max"] = max(state["lr_max"], lr)
        weight = state["step"] ** group["r"] * state["lr_max"] ** group["weight_lr_power"]
        state["weight_sum"] += weight
        share = weight / state["weight_sum"] if state["weight_sum"] else 0.0
        squares.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = squares.div(1 - beta2 ** state["step"]).sqrt_().add_(group["eps"])
        direction = gradient.div_(root).add_(y, alpha=group["weight_decay"])
        # x does not occur: put x = (y - (1 - b1) z) / b1 into the new y.
        y.lerp_(z, share).sub_(direction, alpha=lr * (1 - beta1 * (1 - share)))
        z.sub_(direction, alpha=lr)


def average(y: Tensor, z: Tensor, beta1: float) -> Tensor:
    """x of y = (1 - beta1) z + beta1 x, a new tensor. One operation after the other, none of them fused: the same bits for a piece as for the whole."""
    return y.sub(z.to(y.device)).mul_((1 - beta1) / beta1).add_(y)


@dataclass
class Averaging:
    """Puts the average of a schedule-free optimizer in the place of the weights that learn, and these back to the bit."""

    optimizer: ScheduleFree
    parameters: Sequence[nn.Parameter]
    inside: bool = False
    """Whether the parameters hold the average now."""

    @contextmanager
    def __call__(self, publish: Callable[[], None]) -> Iterator[None]:
        """Inside, the parameters hold x; y waits in host memory meanwhile. `publish` is called when they have changed."""
        if self.inside:
            yield
            return
        known = [p for p in self.parameters if self.optimizer.state.get(p)]  # of others y = z = x
        kept = [_local(p).detach().to("cpu", copy=True) for p in known]
        self.inside = True
        try:
            self._average(known)
            publish()
            yield
        finally:
            self._back(known, kept)
            publish()
            self.inside = False

    @torch.no_grad()
    def _average(self, known: Sequence[nn.Parameter]) -> None:
        beta1 = self.optimizer.param_groups[0]["betas"][0]
        for parameter in known:
            y = _local(parameter)
            y.copy_(average(y, _local(self.optimizer.state[parameter]["z"]), beta1))

    @torch.no_grad()
    def _back(self, known: Sequence[nn.Parameter], kept: Sequence[Tensor]) -> None:
        for parameter, y in zip(known, kept, strict=True):
            _local(parameter).copy_(y)  # wherever it is by now: residents move between phases


@dataclass(frozen=True)
class AverageOf:
    """The tensors of a checkpoint as `Saved`, with the average x of each weight that learned in the place of y."""

    saved: Saved
    beta1: float
    scalars: Mapping[str, float]
    """Name -> z of a weight that is a single number, which stands among the numbers of a checkpoint."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors."""
        return self.saved.shapes()

    @torch.no_grad()
    def into(self, tensors: dict[str, Tensor]) -> None:
        """Copies them into these, plain float32 ones."""
        names = [key.removeprefix("weights/") for key in tensors if key.startswith("weights/")]
        z = {f"z/{n}": torch.empty_like(t) for n in names if (t := tensors[f"weights/{n}"]).dim()}
        self.saved.into(tensors | z)
        for name in names:
            y = tensors[f"weights/{name}"]
            y.copy_(
                average(y, z[f"z/{name}"] if y.dim() else torch.full_like(y, self.scalars[name]), self.beta1)
            )


def shown(saved: Saved, numbers: Mapping[str, Any]) -> Saved:
    """What a checkpoint shows of a model to those who do not learn on: the weights that an evaluation would measure. `numbers`: its `scalar_state`."""
    if numbers.get("optimizer") != NAME:
        return saved
    return AverageOf(saved, numbers["beta1"], numbers["numbers"].get("z", {}))


def check_beta(config: OptimizerConfig, numbers: Mapping[str, Any]) -> None:
    """ValueError if the average of a checkpoint would be another with the first of optimizer.betas as it is now."""
    before = numbers.get("beta1", config.betas[0])
    if before != config.betas[0]:
        raise ValueError(
            f"{config.section}.betas={config.betas}: the average of the checkpoint was kept with {before}, and would be another. Set "
            f"{config.section}.betas=[{before}, {config.betas[1]}], or begin a new run from the weights."
        )


def _local(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held
