"""Where a model comes from: a backend decides how much of it each process holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.lazy import empty_model
from lightrft.models.load import load_model
from lightrft.models.logprobs import backbone, causal_lm, text_config
from lightrft.models.lora import plain_parameters
from lightrft.models.values import ValueModel
from lightrft.models.weights import Weights


@dataclass(frozen=True)
class Source:
    """A model as the settings describe it."""

    config: ModelConfig
    learns: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """The type it computes in."""
        found: torch.dtype = getattr(torch, self.config.dtype)
        return found

    def full(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with all its weights."""
        return load_model(self.config, device, trainable=self.learns)

    def empty(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """Module before its weights are read (models/lazy.py: empty); what is not in a checkpoint is real."""
        return empty_model(self.config, device, trainable=self.learns, dtype=dtype)

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
        plain = load_model(replace(self.config, lora=LoraConfig()), "cpu", trainable=False)
        return {name: parameter.detach() for name, parameter in plain_parameters(plain).items()}


@dataclass(frozen=True)
class CriticSource(Source):
    """The body of the model under a head to one number (models/values.py). All of it learns: no adapters."""

    def full(self, device: torch.device | str = "cpu") -> nn.Module:
        """The critic with all its weights."""
        return _critic(load_model(self._bare(), device))

    def empty(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """The critic before the weights of its body are read; its head is real."""
        return _critic(empty_model(self._bare(), device, dtype=dtype))

    def missing(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Parameters of the body that an empty critic is to be given, under their names in a checkpoint."""
        assert isinstance(module, ValueModel)
        return {f"{module.body_name}.{name}": parameter for name, parameter in module.body.named_parameters()}

    def _bare(self) -> ModelConfig:
        return replace(self.config, lora=LoraConfig())


def _critic(language: nn.Module) -> ValueModel:
    return ValueModel(backbone(language), text_config(language), causal_lm(language).base_model_prefix)
