"""Where a model comes from: a backend decides how much of it each process holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.lazy import empty_model
from lightrft.models.load import load_model
from lightrft.models.lora import plain_parameters
from lightrft.models.weights import Weights


@dataclass(frozen=True)
class Source:
    """A model as the settings describe it."""

    config: ModelConfig
    learns: bool = True
    rounded: bool = False
    """Whether one that does not learn has matrices rounded as `model.lora.quantize_base` says, as one that learns always does."""

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        found: torch.dtype = getattr(torch, self.config.dtype)
        return found

    def full(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with all its weights."""
        return load_model(self.config, device, trainable=self.learns, rounded=self.rounded)

    def empty(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """Module before its weights are read (models/lazy.py: empty); what is not in a checkpoint is real."""
        return empty_model(self.config, device, trainable=self.learns, rounded=self.rounded, dtype=dtype)

    def missing(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """What a empty module is to be given, under its names in a checkpoint; tied parameters once."""
        found: dict[nn.Parameter, str] = {}
        for name, parameter in plain_parameters(module).items():
            found.setdefault(parameter, name)
        return {name: parameter for parameter, name in found.items()}

    def weights(self, names: Iterable[str]) -> Weights | None:
        """The files with these weights; None where they stand there under other names, or in no safetensors file."""
        found = Weights.of(self.config)
        return found if found is not None and found.holds(names) else None

    def whole(self) -> dict[str, Tensor]:
        """All weights by their names in a checkpoint, in host memory."""
        stored = replace(self.config, lora=LoraConfig(), compile=False, kernels="off")  # it computes nothing
        plain = load_model(stored, "cpu", trainable=False)
        return {name: parameter.detach() for name, parameter in plain_parameters(plain).items()}
