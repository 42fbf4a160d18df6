"""Optimizers by name, and what a checkpoint keeps of each: whatever it knows of a parameter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import OptimizerConfig
from lightrft.config.training import TWO_SETS
from lightrft.strategy.footprint import ADAM, EXACT
from lightrft.strategy.schedule_free import NAME, ScheduleFree
from lightrft.utils.imports import require, resolve

Named = Sequence[tuple[str, nn.Parameter]]
Make = Callable[[Named, OptimizerConfig], Any]
"""Named float32 weights, settings -> an optimizer as torch has them."""


def decay_groups(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> list[dict[str, object]]:
    """Parameter groups: matrices with optimizer.weight_decay, biases and norms without."""
    matrices, rest = ([p for p in parameters if (p.dim() > 1) is wanted] for wanted in (True, False))
    decayed: dict[str, object] = {"params": matrices, "weight_decay": config.weight_decay}
    return [decayed, {"params": rest, "weight_decay": 0.0}]


def adamw(
    parameters: Sequence[nn.Parameter],
    config: OptimizerConfig,
    kind: type[torch.optim.AdamW] = torch.optim.AdamW,
) -> torch.optim.AdamW:
    """AdamW over these parameters."""
    return kind(
        decay_groups(parameters, config),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=True,
    )


class Together:
    """Two optimizers as one, each over parameters of its own."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        self.param_groups: list[dict[str, Any]] = [group for part in parts for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """Parameter -> what its optimizer knows of it; live."""
        return {p: known for part in self.parts for p, known in part.state.items()}

    def step(self) -> None:
        """One update of each."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all parameters."""
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


def _adamw(named: Named, config: OptimizerConfig) -> Any:
    _known_options(config, {})
    return adamw([p for _, p in named], config)


def _adamw_8bit(named: Named, config: OptimizerConfig) -> Any:
    return _like_adamw(named, config, require("bitsandbytes", "bitsandbytes").optim.AdamW8bit)


def _muon(named: Named, config: OptimizerConfig) -> Any:
    """Matrices of numbered layers by Muon, with steps as large as AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982, eq. 4);
    embeddings, heads, biases and norms by AdamW."""
    inner = [p for name, p in named if is_hidden_matrix(name, p)]
    rest = [p for name, p in named if not is_hidden_matrix(name, p)]
    if not inner:
        raise ValueError(
            "optimizer.name=muon: no matrix of a layer learns, and all else is AdamW's. Set optimizer.name=adamw."
        )
    options: dict[str, Any] = {"adjust_lr_fn": "match_rms_adamw", **_known_options(config, torch.optim.Muon)}
    first = torch.optim.Muon(inner, lr=config.learning_rate, weight_decay=config.weight_decay, **options)
    return Together(first, adamw(rest, config)) if rest else first


def _adafactor(named: Named, config: OptimizerConfig) -> Any:
    options = _known_options(config, torch.optim.Adafactor)
    return torch.optim.Adafactor(
        decay_groups([p for _, p in named], config), lr=config.learning_rate, **options
    )


def _schedule_free(named: Named, config: OptimizerConfig) -> Any:
    return _like_adamw(named, config, ScheduleFree)


def _like_adamw(named: Named, config: OptimizerConfig, kind: Any) -> Any:
    """An optimizer that takes AdamW's settings, and its own of optimizer.options."""
    options = _known_options(config, kind)
    groups = decay_groups([p for _, p in named], config)
    betas = (config.betas[0], config.betas[1])
    return kind(groups, lr=config.learning_rate, betas=betas, eps=config.eps, **options)


OPTIMIZERS: dict[str, Make] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "muon": _muon,
    "adafactor": _adafactor,
    NAME: _schedule_free,
}


def _state_adamw(name: str, weight: Tensor, config: OptimizerConfig) -> int:  # noqa: ARG001  # as Count has it
    return ADAM * weight.numel()


def _state_adamw_8bit(name: str, weight: Tensor, config: OptimizerConfig) -> int:  # noqa: ARG001  # as Count has it
    """A byte for each moment and a float32 for 256 of them; small tensors in float32. So has bitsandbytes 0.50; two tables of 1 KiB
    that all weights share are left out."""
    if config.options.get("optim_bits") == 32 or weight.numel() < config.options.get("min_8bit_size", 4096):
        return ADAM * weight.numel()
    return 2 * (weight.numel() + EXACT * -(-weight.numel() // 256))


def _state_muon(name: str, weight: Tensor, config: OptimizerConfig) -> int:  # noqa: ARG001  # as Count has it
    return (EXACT if is_hidden_matrix(name, weight) else ADAM) * weight.numel()


def _state_adafactor(name: str, weight: Tensor, config: OptimizerConfig) -> int:  # noqa: ARG001  # as Count has it
    """One number for each row and each column of a matrix, and of each matrix of a stack; all of a vector."""
    if weight.dim() < 2:
        return EXACT * weight.numel()
    return EXACT * (weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2])


Count = Callable[[str, Tensor, OptimizerConfig], int]
"""Name of a weight, the weight, settings -> bytes of what an optimizer keeps of it."""
STATE_BYTES: dict[str, Count] = {
    "adamw": _state_adamw,
    "adamw_8bit": _state_adamw_8bit,
    "muon": _state_muon,
    "adafactor": _state_adafactor,
    NAME: _state_adamw,  # z and the running square
}


def state_bytes(named: Iterable[tuple[str, Tensor]], config: OptimizerConfig) -> int:
    """Bytes that the optimizer called `optimizer.name` keeps of these weights, float32 ones or of the meta device, but for its single
    numbers; those of an import path are counted as AdamW's (`is_unknown`)."""
    count = STATE_BYTES["adamw" if is_unknown(config) else config.name]
    return sum(count(name, weight, config) for name, weight in named)


def is_unknown(config: OptimizerConfig) -> bool:
    """Whether the optimizer is an import path, so that nobody knows what it keeps before its first step."""
    return ":" in config.name


def build_optimizer(named: Named, config: OptimizerConfig) -> Any:
    """The optimizer called `optimizer.name`, over named float32 weights, whole ones or pieces (DTensor).

    ValueError for an unknown name or option, and for an optimizer with weights for training and others for all else. An import path names a class that is called as torch's are:
    (groups with weight_decay, lr=, **optimizer.options).
    """
    if not is_unknown(config):
        return resolve(OPTIMIZERS, config.name, "optimizer")(named, config)
    own: Any = resolve({}, config.name, "optimizer")
    if callable(getattr(own, "eval", None)) and callable(getattr(own, "train", None)):
        raise ValueError(f"{config.section}.name={config.name}: {TWO_SETS}")
    options = _known_options(config, own)
    return own(decay_groups([p for _, p in named], config), lr=config.learning_rate, **options)


def need_adamw(config: OptimizerConfig, backend: str) -> None:
    """ValueError for an optimizer that a backend with an AdamW of its own cannot take."""
    if config.name != "adamw":
        raise ValueError(
            f"{config.section}.name={config.name} with strategy.backend={backend}, which divides AdamW's state itself. Set "
            f"{config.section}.name=adamw, or another strategy.backend."
        )


WHOLE = ("adafactor", "adamw_8bit")
"""Optimizers whose library computes with whole tensors alone."""


def check_pieces(config: OptimizerConfig, backend: str) -> None:
    """ValueError for an optimizer that cannot change weights in pieces (DTensor)."""
    if config.name in WHOLE:
        raise ValueError(
            f"{config.section}.name={config.name} with strategy.backend={backend}: its library changes whole weights, and this backend "
            f"holds pieces. Set {config.section}.name=adamw, muon or {NAME}, or take a strategy.backend that holds whole weights."
        )


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix inside a numbered layer: no embedding, no head."""
    return parameter.dim() == 2 and any(part.isdecimal() for part in name.split("."))


def _known_options(config: OptimizerConfig, kind: Any) -> dict[str, Any]:
    """optimizer.options. ValueError for one that the optimizer does not have, or that has a setting of its own."""
    known = inspect.signature(kind).parameters if callable(kind) else kind
    own = {"params", "lr", "betas", "eps", "weight_decay"}
    if not any(getattr(p, "kind", None) is inspect.Parameter.VAR_KEYWORD for p in dict(known).values()):
        wrong = sorted(name for name in config.options if name not in known or name in own)
        if wrong:
            there = ", ".join(sorted(name for name in known if name not in own)) or "none"
            raise ValueError(
                f"{config.section}.options.{wrong[0]}: {config.name} has no such option; it has {there}."
            )
    return dict(config.options)


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What AdamW knows of a parameter: step (a number), exp_avg and exp_avg_sq; zeros before its first update."""
    state: dict[str, Tensor] = optimizer.state[parameter]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return state


def known_of(optimizer: Any, parameters: Iterable[nn.Parameter]) -> None:
    """Makes an optimizer know all these parameters, as it does before its first update."""
    present, wanted = optimizer.state, set(parameters)
    for part in getattr(optimizer, "parts", (optimizer,)):
        own = [p for group in part.param_groups for p in group["params"] if p in wanted]
        for parameter in own:
            if present.get(parameter):
                continue
            if isinstance(part, torch.optim.AdamW):
                moments(part, parameter)
            elif isinstance(part, ScheduleFree):
                part.meet(parameter)
            else:
                _meet(part, parameter)


@torch.no_grad()
def _meet(optimizer: Any, parameter: nn.Parameter) -> None:
    """A step of gradient zero and learning rate zero for one parameter: it changes no weight, and its count is zero again."""
    everyone = [p for group in optimizer.param_groups for p in group["params"]]
    gradients, rates = [p.grad for p in everyone], [group["lr"] for group in optimizer.param_groups]
    before = parameter.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p in everyone:
        p.grad = None
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    parameter.copy_(before)
    for p, gradient in zip(everyone, gradients, strict=True):
        p.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    _count(optimizer.state[parameter], 0)


def _count(state: dict[str, Any], steps: int) -> None:
    if isinstance(state.get("step"), Tensor):
        state["step"].fill_(steps)
    elif "step" in state:
        state["step"] = steps


def tensors_of(optimizer: Any, named: Named) -> dict[str, Tensor]:
    """What an optimizer knows of each parameter as KIND/NAME, live: AdamW's are exp_avg/NAME and exp_avg_sq/NAME. What several share, as
    the tables of bitsandbytes, is there under the name of the first: a file of a checkpoint holds no tensor twice."""
    known_of(optimizer, [p for _, p in named])
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, p in named:
        for kind, value in optimizer.state[p].items():
            if isinstance(value, Tensor) and value.dim() and kind != "step" and id(value) not in seen:
                seen.add(id(value))
                found[f"{kind}/{name}"] = value
    return found


def numbers_of(optimizer: Any, named: Named) -> dict[str, dict[str, float]]:
    """The single numbers that it knows of each parameter: kind -> name -> number. Steps only of those that have taken fewer than others,
    having had no gradient in some."""
    most = steps_taken(optimizer, [p for _, p in named])
    found: dict[str, dict[str, float]] = {}
    for name, p in named:
        for kind, value in optimizer.state[p].items():
            single = isinstance(value, (int, float)) or (isinstance(value, Tensor) and not value.dim())
            if single and (kind != "step" or float(value) != most):
                found.setdefault(kind, {})[name] = float(value)
    return found


def take_numbers(optimizer: Any, named: Named, numbers: Mapping[str, Mapping[str, float]]) -> None:
    """Takes `numbers_of` back."""
    parameters = dict(named)
    for kind, values in numbers.items():
        for name, value in values.items():
            state = optimizer.state[parameters[name]]
            now = state[kind]
            state[kind] = torch.full_like(now, value) if isinstance(now, Tensor) else type(now)(value)


def steps_taken(optimizer: Any, parameters: Sequence[nn.Parameter]) -> int:
    """The optimizer's own count of updates."""
    known_of(optimizer, parameters)
    return max((int(optimizer.state[p].get("step", 0)) for p in parameters), default=0)


def set_steps(optimizer: Any, parameters: Sequence[nn.Parameter], count: int) -> None:
    """Sets that count."""
    known_of(optimizer, parameters)
    for p in parameters:
        _count(optimizer.state[p], count)
