"""Weights that belong to an engine of this package, where the actor's are in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from lightrft.engines.base import NONE
from lightrft.models.lazy import empty
from lightrft.models.lora import plain_parameters, plain_state


class Versioned(Protocol):
    """What an engine shows of itself to the weights that it owns."""

    weight_version: int
    device: torch.device


class OwnWeights:
    """The weights of a module that was empty when the engine got it, as a resident: given at each sync, dropped after use.

    They are never moved to host memory: who offloads them has them elsewhere.
    """

    def __init__(self, engine: Versioned, module: nn.Module) -> None:
        self._engine, self._module = engine, module
        engine.weight_version = NONE

    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Holds these. ValueError for a name the module does not have, or if one is left out; of tied ones one name will do."""
        parameters, buffers = plain_parameters(self._module), dict(self._module.named_buffers())
        lacking = {parameter: name for name, parameter in parameters.items()}
        for name, tensor in weights:
            if name in buffers:
                buffers[name].copy_(tensor)
            elif name in parameters:
                lacking.pop(parameters[name], None)
                # A clone, should the sender change its own in place.
                parameters[name].data = tensor.to(self._engine.device, parameters[name].dtype, copy=True)
            else:
                raise ValueError(f"the model has no weight named {name!r}.")
        if lacking:
            raise ValueError(f"no weight named {min(lacking.values())!r} was given.")

    def onload(self) -> None:
        """Nothing is there before `take`."""

    def offload(self) -> None:
        """Drops the weights; the next sync gives new ones."""
        empty(self._module)
        self._engine.weight_version = NONE

    def nbytes(self) -> int:
        """Bytes of the module's parameters."""
        return sum(p.numel() * p.element_size() for p in self._module.parameters())


@torch.no_grad()
def load(module: nn.Module, own: OwnWeights | None, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Engine.load_weights of an engine of this package. Without weights of its own it shares the actor's, and a tensor that is the
    module's already costs nothing. ValueError for a name the module does not have."""
    if own is not None:
        own.take(weights)
        return
    shared = plain_state(module)
    for name, tensor in weights:
        if name not in shared:
            raise ValueError(f"the model has no weight named {name!r}.")
        if shared[name].data_ptr() != tensor.data_ptr():
            shared[name].copy_(tensor)
