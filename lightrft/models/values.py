"""A critic: a language model's body with a head that says how much reward is still to come."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.load import load_model, without_weights
from lightrft.models.logprobs import backbone, hidden_states, text_config
from lightrft.types import Batch


class ValueModel(nn.Module):
    """`body` (a transformers model without output head) and a linear head to one number, which begins at 0."""

    base_model_prefix = "body"

    def __init__(self, body: nn.Module, config: Any) -> None:
        super().__init__()
        self.body, self.config = body, config
        weight = next(body.parameters())
        exact = torch.promote_types(weight.dtype, torch.float32)
        self.head = nn.Linear(config.hidden_size, 1, device=weight.device, dtype=exact)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def load_critic(model: ModelConfig, path: str, device: torch.device | str) -> ValueModel:
    """A trainable critic on the body of `path`, or of the actor's own model if that is empty. All of it learns: no adapters."""
    language = load_model(replace(model, path=path or model.path, lora=LoraConfig()), device)
    return ValueModel(backbone(language), text_config(language))


def critic_size(model: ModelConfig, path: str) -> int:
    """Numbers in the body of the critic that `load_critic` makes, without loading any weight."""
    return sum(
        p.numel() for p in backbone(without_weights(replace(model, path=path or model.path))).parameters()
    )


def values(module: Any, batch: Batch, *, exact_attention: bool = False) -> Tensor:
    """(T,) float32 (float64 for a float64 model): the value of the state in which each response token was chosen."""
    assert batch.inputs is not None
    hidden = hidden_states(module, batch.inputs, exact_attention=exact_attention)
    hidden = hidden.index_select(0, batch.inputs.predict)
    result: Tensor = module.head(hidden.to(module.head.weight.dtype))[:, 0]
    return result
