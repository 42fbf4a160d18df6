"""A critic: a language model's body with a head that says how much reward is still to come, and cost where there is a constraint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import ModelConfig
from lightrft.models.describe import without_weights
from lightrft.models.linear import ExactLinear
from lightrft.models.logprobs import backbone, predicting_states
from lightrft.models.sequence import Share
from lightrft.types import Batch, Inputs


class ValueModel(nn.Module):
    """`body` (a transformers model without output head) and a linear head, which begins at 0: to the value of the reward, and of a cost."""

    base_model_prefix = "body"
    exact = ("head",)
    """Parts that stay in float32 whatever type the body computes in."""

    def __init__(self, body: nn.Module, config: Any, body_name: str = "model", *, outputs: int = 1) -> None:
        """`body_name`: what the language model that the body comes from calls it. `outputs`: how many values."""
        super().__init__()
        self.body, self.config, self.body_name = body, config, body_name
        weight = next(body.parameters())
        exact = torch.promote_types(weight.dtype, torch.float32)
        self.head = ExactLinear(config.hidden_size, outputs, device=weight.device, dtype=exact)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def critic_config(model: ModelConfig, path: str) -> ModelConfig:
    """The model whose body a critic takes: that of `path`, or the actor's own if it is empty."""
    return replace(model, path=path or model.path)


def critic_size(model: ModelConfig) -> int:
    """Numbers in the body of a critic of this model, without loading any weight."""
    return sum(p.numel() for p in backbone(without_weights(model)).parameters())


def values(module: Any, batch: Batch, exact_attention: bool = False) -> tuple[Tensor, ...]:
    """The values of the state in which each response token was chosen, (T,) for each output, float32 (float64 for a float64 model)."""
    assert isinstance(batch.inputs, Inputs)
    share = Share.of(batch.inputs)
    hidden = predicting_states(module, batch.inputs, share, exact_attention=exact_attention)
    found: Tensor = module.head(hidden)
    return tuple(share.whole(column.clone()) for column in found.unbind(1))  # not views, which FSDP warns of
