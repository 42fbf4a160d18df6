"""Attention over packed tokens, where a prompt is computed once for all answers to it.

Registered with transformers' AttentionInterface as `lightrft_packed`. The model is called with `layout=...`, which
every decoder layer hands on to its attention; the layout says which tokens see which. Nothing here, and nothing in
transformers under this name, ever builds a mask of all tokens against all tokens.

A response attends to two stretches: its prompt (all of it) and itself (causally). Each stretch is one call of a
flash kernel that also returns the log-sum-exp of its scores, and two stretches are joined exactly by those:
o = sum_i o_i exp(l_i - l), l = log sum_i exp(l_i). The backward pass of each stretch is the same kernel's, given the
joined output and log-sum-exp (as in ring attention, Liu et al. 2023, https://arxiv.org/abs/2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from lightrft.models.varlen import Stretches, varlen_attention
from lightrft.utils.device import has_varlen_kernel

ATTENTION = "lightrft_packed"

Span = tuple[int, int]


def mask_of(config: Any) -> int | None:
    """The token that stands for one not yet revealed, of a masked diffusion language model: one whose tokens all see each other, as
    transformers says it, and that has such a token. None for all others."""
    mask = getattr(config, "mask_token_id", None)
    return mask if getattr(config, "is_causal", True) is False and isinstance(mask, int) else None


class Layout(Protocol):
    """The rule of which tokens see which: given to the model as `layout=`, called by every attention layer."""

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """(1, N, Hq, D) from query (1, Hq, N, D), key and value (1, Hkv, N, D)."""
        ...


@dataclass(frozen=True)
class SharedPrompts:
    """Prompts, each followed by the responses that continue it, laid end to end.

    `groups` holds (prompt, responses): token ranges in N; the responses of a prompt are adjacent.
    """

    groups: tuple[tuple[Span, tuple[Span, ...]], ...]
    exact: bool = False
    """One plain sdpa call per sequence, mask and all: the slow path that the kernels are checked against."""
    both_ways: tuple[Span, ...] = ()
    """Token ranges inside prompts whose tokens see each other, later ones too: their prompts are computed with a mask, one by one."""
    _on_device: dict[torch.device, Stretches] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        prompt_spans: Sequence[Span],
        response_spans: Sequence[Span],
        exact: bool = False,
        both_ways: tuple[Span, ...] = (),
    ) -> SharedPrompts:
        """From the spans of `Inputs`: sequences that share a prompt span become one group."""
        groups: dict[Span, list[Span]] = {}
        for prompt, response in zip(prompt_spans, response_spans, strict=True):
            groups.setdefault(prompt, []).append(response)
        return cls(
            tuple((prompt, tuple(responses)) for prompt, responses in groups.items()), exact, both_ways
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with response."""
        return max(p[1] - p[0] + max((r[1] - r[0] for r in rs), default=0) for p, rs in self.groups)

    def _stretches(self, device: torch.device) -> Stretches:
        """Stretches as tensors, made for the first layer and kept for the others."""
        if device not in self._on_device:
            self._on_device[device] = Stretches.of(self.groups, device)
        return self._on_device[device]

    def attend(
        self,
        module: Any,  # noqa: ARG002  # as Layout has it
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Attention within each sequence; shapes as in `Layout`."""
        windowed = sliding_window is not None and self.longest > sliding_window
        window = sliding_window if windowed else None
        only_prompts = not any(responses for _, responses in self.groups)
        if self.exact or (self.both_ways and only_prompts) or (windowed and query.device.type == "cpu"):
            out = _one_call_per_sequence(self, query, key, value, scaling, window)
        elif query.device.type == "cpu":
            out = _Stretches.apply(query, key, value, self, scaling)  # type: ignore[no-untyped-call]
            out = self._seeing_both_ways(out, query, key, value, scaling, window)
        elif has_varlen_kernel(query):
            out = varlen_attention(query, key, value, self._stretches(query.device), scaling, window)
            out = self._seeing_both_ways(out, query, key, value, scaling, window)
        else:
            out = _one_call_per_sequence(self, query, key, value, scaling, window)
        return out.transpose(1, 2)

    def _seeing_both_ways(
        self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """`out`, computed as if nothing were seen both ways, with the prompts that hold such ranges computed anew.

        Responses see their prompts whole either way, so that no keys are copied for them. What is replaced gets no gradient.
        """
        pieces, done = [], 0
        for (a, b), _ in self.groups:
            inside = tuple((start - a, end - a) for start, end in self.both_ways if a <= start < b)
            if inside:
                alone = SharedPrompts((((0, b - a), ()),), both_ways=inside)
                q, k, v = (x[:, :, a:b] for x in (query, key, value))
                pieces += [
                    out[:, :, done:a],
                    _one_call_per_sequence(alone, q, k, v, scaling, window),
                ]
                done = b
        return torch.cat([*pieces, out[:, :, done:]], 2) if pieces else out


@dataclass(frozen=True)
class BothWays:
    """Rows laid end to end, in each of which every token sees every other."""

    rows: tuple[Span, ...]

    def attend(
        self,
        module: Any,  # noqa: ARG002  # as Layout has it
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Attention within each row; shapes as in `Layout`. Neighbours of one length are one call."""
        longest = max(b - a for a, b in self.rows)
        if sliding_window is not None and longest > sliding_window:
            raise ValueError(
                f"this model's layers look {sliding_window} tokens far, and a row has {longest}: attention both ways has no window here."
            )
        pieces: list[Tensor] = []
        for length, rows in groupby(self.rows, key=lambda row: row[1] - row[0]):
            spans = list(rows)
            start, end = spans[0][0], spans[-1][1]

            def apart(x: Tensor, a: int = start, b: int = end, n: int = length) -> Tensor:
                return x[0, :, a:b].reshape(x.shape[1], -1, n, x.shape[3]).transpose(0, 1)

            q, k, v = (apart(x) for x in (query, key, value))
            out = F.scaled_dot_product_attention(
                q, k, v, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
            )
            pieces.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(pieces)[None]


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  # transformers gives it; the layout says who sees whom
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; signature given by its AttentionInterface."""
    for unsupported in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(unsupported) is not None:
            raise ValueError(
                f"this model's attention uses '{unsupported}', which {ATTENTION} does not compute."
            )
    if dropout:
        raise ValueError(
            f"attention dropout {dropout} in training makes ratios wrong; set attention_dropout=0 in the model's config."
        )
    if layout is None:
        length = query.shape[2]
        if query.shape[0] != 1 or key.shape[2] != length:
            raise ValueError(
                f"{ATTENTION} reads one packed row without a cache; call the model through lightrft, or load it with attn_implementation='sdpa'."
            )
        whole = ((0, length),)
        two_way = mask_of(getattr(module, "config", None)) is not None
        layout = BothWays(whole) if two_way else SharedPrompts(((whole[0], ()),))
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    return layout.attend(module, query, key, value, scaling, sliding_window), None


AttentionInterface.register(ATTENTION, packed_attention)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Stretches(torch.autograd.Function):
    """The CPU kernel over every stretch, joined by log-sum-exp; heads of keys are shared, never copied."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: SharedPrompts, scaling: float
    ) -> Tensor:
        length, heads = query.shape[2], query.shape[1]
        out = query.new_empty(1, length, heads, query.shape[-1]).transpose(1, 2)
        total = torch.empty(1, length, heads, dtype=accumulation_type(query), device=query.device).transpose(
            1, 2
        )
        for (a, b), responses in layout.groups:
            k, v = key[:, :, a:b], value[:, :, a:b]
            out[:, :, a:b], total[:, :, a:b] = _flash(query[:, :, a:b], k, v, 0.0, True, scale=scaling)
            for c, d in responses:
                if c < d:
                    own = query[:, :, c:d], key[:, :, c:d], value[:, :, c:d]
                    out[:, :, c:d], total[:, :, c:d] = _flash(*own, 0.0, True, scale=scaling)
            c, d = _extent(responses)
            if c < d:
                o, sums = _flash(query[:, :, c:d], k, v, 0.0, False, scale=scaling)
                joined = torch.logaddexp(total[:, :, c:d], sums)
                share = torch.exp(sums - joined).unsqueeze(-1)
                out[:, :, c:d] = torch.lerp(out[:, :, c:d].to(share.dtype), o.to(share.dtype), share)
                total[:, :, c:d] = joined
        ctx.save_for_backward(query, key, value, out, total)
        ctx.layout, ctx.scaling = layout, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, total = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)

        def stretch(q: Span, k: Span, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            rows, columns = slice(*q), slice(*k)
            found: tuple[Tensor, Tensor, Tensor] = _flash_backward(
                grad[:, :, rows], query[:, :, rows], key[:, :, columns], value[:, :, columns], out[:, :, rows],
                total[:, :, rows], 0.0, causal, scale=ctx.scaling,
            )  # fmt: skip
            return found

        for (a, b), responses in ctx.layout.groups:
            dq[:, :, a:b], dk[:, :, a:b], dv[:, :, a:b] = stretch((a, b), (a, b), True)
            for c, d in responses:
                if c < d:
                    dq[:, :, c:d], dk[:, :, c:d], dv[:, :, c:d] = stretch((c, d), (c, d), True)
            c, d = _extent(responses)
            if c < d:
                q, k, v = stretch((c, d), (a, b), False)
                dq[:, :, c:d] += q
                dk[:, :, a:b] += k
                dv[:, :, a:b] += v
        return dq, dk, dv, None, None


def _extent(responses: Sequence[Span]) -> Span:
    return (responses[0][0], responses[-1][1]) if responses else (0, 0)


def accumulation_type(tensor: Tensor) -> torch.dtype:
    """The type that scores are kept and added up in: float64 for float64, float32 for all narrower ones."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _one_call_per_sequence(
    layout: SharedPrompts, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
) -> Tensor:
    """Attention by torch's own function with an explicit mask per sequence."""
    pieces: dict[int, Tensor] = {}
    for (a, b), responses in layout.groups:
        for c, d in ((a, b), *responses):
            own = c != a
            k = torch.cat([key[:, :, a:b], key[:, :, c:d]], 2) if own else key[:, :, a:b]
            v = torch.cat([value[:, :, a:b], value[:, :, c:d]], 2) if own else value[:, :, a:b]
            age = torch.arange(k.shape[2] - (d - c), k.shape[2], device=key.device)[:, None]
            age = age - torch.arange(k.shape[2], device=key.device)  # how far a key lies behind a query
            seen = (age >= 0) if window is None else (age >= 0) & (age < window)
            for start, end in () if own else layout.both_ways:
                if a <= start and end <= b:
                    seen[start - a : end - a, start - a : end - a] = True
            pieces[c] = F.scaled_dot_product_attention(
                query[:, :, c:d],
                k,
                v,
                attn_mask=seen,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
    return torch.cat([pieces[c] for c in sorted(pieces)], 2)
