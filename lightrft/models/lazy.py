"""Models without weights: for sharding backends, which read them shard by shard, and engines that are given them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lightrft.config import ModelConfig
from lightrft.models.describe import convert, shaped
from lightrft.models.load import prepared
from lightrft.models.lora import plain_parameters, round_base
from lightrft.models.spread import is_spread, spread
from lightrft.utils.imports import import_all


def empty_model(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    *,
    trainable: bool = True,
    rounded: bool = False,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The model that `load_model` makes before its weights are read, at hardly any memory: see `empty`.

    Buffers and adapters are real. For sharding backends, which read the weights shard by shard (strategy/load_weights.py),
    and for engines that are given all weights anyway. Parameters are in `dtype`, by default `model.dtype`.
    """
    from accelerate import init_empty_weights

    import_all(config.imports)
    dtype = dtype or getattr(torch, config.dtype)
    convert(config)
    with init_empty_weights(include_buffers=False):
        model = shaped(config)
    model.tie_weights()
    empty(model, dtype, device)
    for inner in model.modules():
        for name, buffer in inner._buffers.items():
            inner._buffers[name] = None if buffer is None else buffer.to(device)
    if trainable or rounded:
        round_base(model, config.lora)
    return prepared(model, config, trainable)


def empty(
    model: nn.Module, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> None:
    """Replaces each parameter by a view of one number with stride zero: right shape, no memory. Tied ones stay tied."""
    remake(model, lambda p: spread(dtype or p.dtype, p.shape, p.device if device is None else device))


def remake(model: nn.Module, make: Callable[[nn.Parameter], torch.Tensor | None]) -> None:
    """Puts a new parameter of `make(parameter)` in the place of each, tied ones together; where that is None, it stays."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for inner in model.modules():
        for name, parameter in inner._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                new = make(parameter)
                made[parameter] = parameter if new is None else nn.Parameter(new, parameter.requires_grad)
            inner._parameters[name] = made[parameter]


def is_empty(model: nn.Module) -> bool:
    """Whether a model's weights are still to come."""
    return all(is_spread(p) for p in plain_parameters(model).values() if p.numel() > 1)
