"""Sequence parallelism: the ranks of a team compute one batch together, each a part of its tokens.

DeepSpeed-Ulysses, Jacobs et al. 2023 (https://arxiv.org/abs/2309.14509). Of a team of s ranks, rank r carries the
tokens r, r + s, r + 2s, ... through the layers, and holds 1 / s of all activations. For attention the ranks swap: from
some tokens with all heads to all tokens with some heads, and back. Each rank then attends as if it were alone with a
model of fewer heads, so every layout works unchanged. The paper deals out stretches of tokens; dealt out like cards,
prompts and answers are spread evenly, and with them the work of the output head.

Gradients: every rank of the team gets the log-probs of all tokens and computes the same loss, but only its own tokens'
log-probs have a gradient there. What a rank accumulates is then its tokens' part of the gradient of every weight; the sum
over the ranks of the team is that of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lightrft.models.attention import Layout
from lightrft.models.families import is_multimodal
from lightrft.types import Inputs


@dataclass(frozen=True)
class Share:
    """This rank's part of a batch: of its N tokens, and of the T response tokens that are asked for, those whose predicting token is here."""

    team: Any
    """The process group that computes the batch together; None: this rank does it alone, and its part is all."""
    num_tokens: int
    """N"""
    rows: Tensor | None
    """(T',) int64, which response tokens are its own, of T; None: all."""
    predict: Tensor
    """(T',) int64, where the tokens that predict them are among its own tokens."""
    num_predicted: int
    """T"""

    @classmethod
    def of(cls, inputs: Inputs, chosen: Tensor | None = None) -> Share:
        """The part of the calling rank. `chosen`: (K,) int64, the response tokens that are asked for; None: all."""
        team, predict, rows = inputs.team, inputs.predict, chosen
        if team is not None:
            here = predict % team.size() == team.rank()
            rows = here.nonzero()[:, 0] if chosen is None else chosen[here[chosen]]
        if rows is not None:
            predict = predict[rows] // (1 if team is None else team.size())
        return cls(team, inputs.token_ids.numel(), rows, predict, inputs.predict.numel())

    def tokens(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """This rank's token ids (n,) and positions (n,) or (R, n), padding included.

        Each rank gets at least one token of padding, at the largest position of the batch: rotary frequencies that depend
        on the largest position (dynamic, longrope) are then the same on all ranks, and the same as for one rank.
        """
        if self.team is None:
            return inputs.token_ids, inputs.positions
        size, rank = self.team.size(), self.team.rank()
        missing = _padded(self.num_tokens, size) - self.num_tokens
        ids, positions = inputs.token_ids, inputs.positions
        ids = torch.cat([ids, ids[:1].expand(missing)])
        last = positions.amax(-1, keepdim=True).expand(*positions.shape[:-1], missing)
        return ids[rank::size], torch.cat([positions, last], -1)[..., rank::size]

    def of_tokens(self, column: Tensor, padding: int) -> Tensor:
        """The rows of an (N, ...) column that are of this rank's tokens, (n, ...), `padding` for its tokens of padding."""
        if self.team is None:
            return column
        size = self.team.size()
        missing = _padded(self.num_tokens, size) - self.num_tokens
        more = column.new_full((missing, *column.shape[1:]), padding)
        return torch.cat([column, more])[self.team.rank() :: size]

    def all_tokens(self, own: Tensor) -> Tensor:
        """(N, ...) of all ranks of the team, from each one's own (n, ...); without gradients."""
        if self.team is None:
            return own
        parts = [torch.empty_like(own) for _ in range(self.team.size())]
        dist.all_gather(parts, own.contiguous(), group=self.team)
        return torch.stack(parts, 1).flatten(0, 1)[: self.num_tokens]

    def layout(self, layout: Layout) -> Layout:
        """Layout for attention layers that see this rank's tokens only."""
        return layout if self.team is None else Swapped(layout, self.team, self.num_tokens)

    def own(self, column: Tensor) -> Tensor:
        """The rows of a (T, ...) column that are this rank's, (T', ...)."""
        return column if self.rows is None else column.index_select(0, self.rows)

    def whole(self, values: Tensor) -> Tensor:
        """(T,) on every rank of the team, from each one's own (T',), 0 where nothing was asked for; the gradient of its own rows reaches
        each."""
        if self.rows is None:
            return values
        if self.team is None:
            return values.new_zeros(self.num_predicted).index_copy(0, self.rows, values)
        found: Tensor = _Together.apply(values, self.rows, self.num_predicted, self.team)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True)
class Swapped:
    """A layout whose attention gets a part of the tokens with all heads, and computes all tokens with a part of the heads."""

    layout: Layout
    team: Any
    num_tokens: int
    """N, without padding: no token attends to padding, and padding attends to nothing."""

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Attention over the tokens of all ranks; shapes as in `Layout`, where N is the number of this rank's tokens."""
        size, heads = self.team.size(), key.shape[1]
        # Fewer key heads than ranks, or a number they cannot share: as many copies of each as it takes.
        copies = math.lcm(heads, size) // heads
        if copies > 1:
            key, value = (x.repeat_interleave(copies, 1) for x in (key, value))
        query, key, value = (self._all_tokens(x) for x in (query, key, value))
        out = self.layout.attend(module, query, key, value, scaling, sliding_window)
        return self._all_heads(out)

    def _all_tokens(self, states: Tensor) -> Tensor:
        """(1, heads / s, N, D) from this rank's (1, heads, n, D)."""
        size, (_, heads, length, width) = self.team.size(), states.shape
        parts = states[0].view(size, heads // size, length, width).transpose(1, 2)
        parts = _swapped(parts, self.team)  # (s: whose tokens, n, heads / s, D)
        whole = parts.transpose(0, 1).reshape(1, size * length, heads // size, width)
        return whole[:, : self.num_tokens].transpose(1, 2)

    def _all_heads(self, out: Tensor) -> Tensor:
        """This rank's (1, n, heads, D) from (1, N, heads / s, D)."""
        size, (_, _, heads, width) = self.team.size(), out.shape
        length = _padded(self.num_tokens, size) // size
        padded = F.pad(out[0], (0, 0, 0, 0, 0, size * length - self.num_tokens))
        parts = padded.view(length, size, heads, width).transpose(0, 1)
        parts = _swapped(parts, self.team)  # (s: whose heads, n, heads / s, D)
        return parts.transpose(0, 1).reshape(1, length, size * heads, width)


def _padded(num_tokens: int, size: int) -> int:
    """Tokens with padding: a multiple of the team's size, at least one of padding for each rank."""
    return (-(-num_tokens // size) + 1) * size


def _swapped(parts: Tensor, team: Any) -> Tensor:
    found: Tensor = _Swap.apply(parts, team)  # type: ignore[no-untyped-call]
    return found


class _Swap(torch.autograd.Function):
    """parts[r] goes to rank r; returns what came, by the rank it came from. So do gradients."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, team: Any) -> Tensor:
        ctx.team = team
        parts = parts.contiguous()
        arrived = torch.empty_like(parts)
        dist.all_to_all_single(arrived, parts, group=team)
        return arrived

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Swap.forward(ctx, grad, ctx.team), None


class _Together(torch.autograd.Function):
    """The rows of all ranks in one column. Every rank computes the same loss of it: the gradient of its rows is its own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, length: int, team: Any) -> Tensor:
        ctx.save_for_backward(rows)
        whole = values.new_zeros(length)
        whole[rows] = values
        dist.all_reduce(whole, group=team)  # one number and zeros: exact
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        return grad.index_select(0, rows), None, None, None


def check_shared(size: int, models: Mapping[str, Any]) -> None:
    """ValueError if a team of `size` ranks cannot compute one of these models: the setting that names it -> its config."""
    for setting, config in models.items():
        if is_multimodal(config):
            raise ValueError(
                f"strategy.sequence_parallel={size}: {setting} names a model that reads more than text, and tokens that stand "
                "for media cannot be shared out among processes. Set strategy.sequence_parallel=1."
            )
        heads = config.get_text_config().num_attention_heads
        if heads % size:
            fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise ValueError(
                f"strategy.sequence_parallel={size}: the {heads} attention heads of {setting} cannot be shared out among {size} "
                f"processes. Set it to one of {fitting}."
            )
