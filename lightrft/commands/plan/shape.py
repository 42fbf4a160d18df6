"""What of a model's size memory and time depend on, read off the model on the meta device: no weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import OptimizerConfig
from lightrft.models.blocks import blocks
from lightrft.models.linear import is_plain
from lightrft.models.logprobs import backbone, text_config
from lightrft.models.nf4 import numbers, rounded_sizes
from lightrft.models.operations import Operations, operations_of, size_per_head
from lightrft.models.source import Source
from lightrft.strategy.footprint import EXACT
from lightrft.strategy.optimizers import is_unknown, state_bytes

SHORT, LONG = 64, 128
"""Tokens of the two passes from which what a token leaves behind is read off."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model as the settings make it, in numbers (not bytes) unless said."""

    source: Source
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, kw_only=True)
    """What changes the weights that learn."""

    @cached_property
    def module(self) -> nn.Module:
        """On the meta device, in the type it computes in; made from config.json alone."""
        return self.source.empty("meta")

    @property
    def width(self) -> int:
        """Bytes of a number in the type the model computes in."""
        return self.source.dtype.itemsize

    @cached_property
    def weights(self) -> int:
        """All of them; tied ones count once."""
        return _size(self.module)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all of them as they rest on one process, each in its own type."""
        return sum(p.nbytes for p in self.module.parameters())

    @cached_property
    def made_whole(self) -> int:
        """Bytes of the largest rounded matrix while a layer computes with it; 0 of a model without any."""
        return self.width * max(rounded_sizes(self.module).values(), default=0)

    @cached_property
    def learned(self) -> int:
        """Weights that learn."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    @cached_property
    def learned_narrow(self) -> int:
        """Weights that learn and rest in a smaller type than float32; adapters do not."""
        learning = (p for p in self.module.parameters() if p.requires_grad)
        return sum(p.numel() for p in learning if p.itemsize < EXACT)

    @cached_property
    def optimizer_state(self) -> int:
        """Bytes of what the optimizer keeps of the weights that learn."""
        learning = ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)
        return state_bytes(learning, self.optimizer)

    @property
    def optimizer_told(self) -> str:
        """What a table says behind the name of the optimizer's bytes: nothing where they are known."""
        return ", counted as AdamW's" if is_unknown(self.optimizer) else ""

    @cached_property
    def plain(self) -> int:
        """Weights of the model without adapters: what an engine is given."""
        return sum(count for name, _, count in numbers(self.module) if ".lora_" not in name)

    @cached_property
    def body(self) -> int:
        """Weights without the output head."""
        return _size(backbone(self.module))

    @property
    def blocks(self) -> int:
        """Layers of the language part."""
        return len(blocks(self.module))

    @cached_property
    def inside(self) -> int:
        """Weights in the blocks; the others are embeddings, head, the last norm, and towers of media."""
        return sum(map(_size, blocks(self.module)))

    @cached_property
    def largest_block(self) -> int:
        """Weights of the largest block."""
        return max(map(_size, blocks(self.module)))

    @cached_property
    def linears(self) -> int:
        """Weights of the linear layers, of which the native engine on a CPU makes a copy in another layout."""
        plain = {m.weight for m in self.module.modules() if is_plain(m)}
        return sum(weight.numel() for weight in plain) + sum(rounded_sizes(self.module).values())

    @cached_property
    def operations(self) -> Operations:
        """What its passes take."""
        found = operations_of(self.module)
        assert found is not None, "a model of texts"
        return found

    @property
    def hidden(self) -> int:
        """H."""
        return int(text_config(self.module).hidden_size)

    @cached_property
    def cached(self) -> int:
        """Keys and values of one token in the engine's cache, each."""
        config = text_config(self.module)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return self.blocks * int(heads) * size_per_head(config)

    @cached_property
    def kept(self) -> float:
        """Bytes that one token leaves behind in the forward pass of the body for the backward pass."""
        short, long = (kept_bytes(self.module, tokens) for tokens in (SHORT, LONG))
        return (long - short) / (LONG - SHORT)

    @cached_property
    def working(self) -> float:
        """Bytes that one token takes in one block while it is computed."""
        plain = replace(self.source.config, gradient_checkpointing=False, checkpoint_every=1)
        return Shape(replace(self.source, config=plain)).kept / self.blocks


def _size(module: nn.Module) -> int:
    return sum(count for _, _, count in numbers(module))


def kept_bytes(module: nn.Module, tokens: int) -> int:
    """Bytes that a forward pass of the body over so many tokens of text keeps for the backward pass, without recomputation."""
    body = backbone(module)
    own = {p.untyped_storage()._cdata for p in module.parameters()}
    own |= {b.untyped_storage()._cdata for b in module.buffers()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    places = torch.arange(tokens, device="meta")[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = body(input_ids=places, position_ids=places, use_cache=False, layout=_Kernel())
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


class _Kernel:
    """A Layout that keeps what the packed kernels keep, and computes nothing."""

    def attend(
        self,
        module: Any,  # noqa: ARG002  # as Layout has it
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,  # noqa: ARG002  # as Layout has it
        sliding_window: int | None,  # noqa: ARG002  # as Layout has it
    ) -> Tensor:
        out: Tensor = Flash.apply(query, key, value)  # type: ignore[no-untyped-call]
        return out.transpose(1, 2)


class Flash(torch.autograd.Function):
    """Queries, keys, values, the result, and one float32 for each head and token."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """A tensor shaped as the queries, not computed."""
        out = torch.empty_like(query)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, sums)
        return out
