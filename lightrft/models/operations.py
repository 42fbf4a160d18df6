"""Floating-point operations of a language model, read off its weights: two for each weight that a token is multiplied with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightrft.models.blocks import blocks
from lightrft.models.classifiers import HEAD
from lightrft.models.logprobs import causal_lm, text_config
from lightrft.models.nf4 import rounded_sizes
from lightrft.models.values import ValueModel


@dataclass(frozen=True)
class Operations:
    """What passes of a model over packed tokens take. Towers that read media, norms and embeddings are left out: they are small."""

    products: float
    """Weights that one token is multiplied with in the blocks; of experts only those that it is sent to."""
    head: int
    """Weights of the output head."""
    attention: int
    """Query heads times the size of a head, summed over layers."""
    learned: float = 1.0
    """Share of the weights that a gradient is made for."""

    def forward(self, tokens: float, predicted: float, pairs: float) -> float:
        """A forward pass over so many tokens, of which `predicted` meet the head; `pairs` of a token and one that it attends to."""
        return 2 * self.products * tokens + 4 * self.attention * pairs + 2 * self.head * predicted

    def update(self, tokens: float, predicted: float, pairs: float) -> float:
        """Forward and backward pass: for the latter as much again for the gradient of what goes in, and for those weights that learn.

        What is computed a second time to save memory does not count, so that the rate says how fast a run learns.
        """
        attended = 4 * self.attention * pairs
        return (2 + self.learned) * (self.forward(tokens, predicted, pairs) - attended) + 3 * attended


def operations_of(module: nn.Module) -> Operations | None:
    """The operations of a model; None for one that has no language part.

    Weights may be on the meta device or in pieces: their whole sizes count.
    """
    if not hasattr(getattr(causal_lm(module), "config", None), "get_text_config"):
        return None
    config = text_config(module)
    met = list(_products(module, config))
    rounded = rounded_sizes(module)
    total = sum(share * rounded.get(weight, _size(weight)) for weight, share in met)
    learned = sum(share * _size(weight) for weight, share in met if weight.requires_grad)
    return Operations(total, head_size(module), attention_size(module), learned / total if total else 1.0)


def head_size(module: nn.Module) -> int:
    """Weights of the output head, or of the value's or the reward model's."""
    if isinstance(module, ValueModel):
        return _size(module.head.weight)
    model = causal_lm(module)
    head = model.get_output_embeddings() or model.get_submodule(HEAD)  # of a reward model
    return _size(head.weight)


def attention_size(module: nn.Module) -> int:
    """Query heads times the size of a head, summed over layers."""
    config = text_config(module)
    return len(blocks(module)) * int(config.num_attention_heads) * size_per_head(config)


def size_per_head(config: Any) -> int:
    """Numbers of one head's query."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _products(module: nn.Module, config: Any) -> Iterator[tuple[nn.Parameter, float]]:
    """The matrices of the blocks, each with the share of tokens that meets it."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    rounded = rounded_sizes(module)
    for block in blocks(module):
        for name, parameter in block.named_parameters():
            if parameter in rounded or len(getattr(parameter, "ds_shape", parameter.shape)) > 1:
                of_expert = experts and ".experts." in f".{name}."
                yield parameter, config.num_experts_per_tok / experts if of_expert else 1.0


def _size(weight: Any) -> int:
    """All numbers of a weight, of which DeepSpeed's ZeRO 3 leaves none in it."""
    return int(getattr(weight, "ds_numel", None) or weight.numel())
