"""Packed attention over shared prompts by the variable-length flash kernel of CUDA devices.

A response attends to two stretches, its prompt and itself: one call over the whole row, in which each prompt and each response
is a sequence of its own, and one for all responses to their prompts. No prompt's keys are copied for its responses. The two are
joined by their log-sum-exp as on the CPU (see attention.py), and so are their backward passes.

torch's public function for this has other arguments in 2.11 and 2.13; the operators below it, called here, have the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightrft.utils.device import sent

Span = tuple[int, int]
Groups = Sequence[tuple[Span, Sequence[Span]]]

_flash = torch.ops.aten._flash_attention_forward
_flash_backward = torch.ops.aten._flash_attention_backward


@dataclass(frozen=True)
class Sequences:
    """Ranges of queries laid end to end, and ranges of keys, laid likewise, that each sees."""

    queries: Tensor
    """(S + 1,) int32, where they begin, and the end of the last."""
    keys: Tensor
    """(S + 1,) int32"""
    longest_query: int
    """At least 2: for single queries the kernel turns heads into queries, and gives its sums in an order of its own."""
    longest_keys: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Sequences:
        """From lengths."""
        starts = [torch.tensor([0, *accumulate(x)], dtype=torch.int32) for x in (queries, keys)]
        return cls(sent(starts[0], device), sent(starts[1], device), max(2, *queries), max(keys))


@dataclass(frozen=True)
class Stretches:
    """What `SharedPrompts` says, as tensors."""

    groups: Groups
    own: Sequences
    """Each prompt and each response by itself."""
    shared: Sequences | None
    """The responses of a prompt together, and that prompt; None where there are no responses."""
    responses: Tensor
    """(R,) int64, which tokens of N are of responses that have a place in `shared`."""
    prompts: Tensor
    """(P,) int64, which are of their prompts."""

    @classmethod
    def of(cls, groups: Groups, device: torch.device) -> Stretches:
        """`groups` as in SharedPrompts."""
        own, queries, keys = [], [], []
        rows, columns = [torch.arange(0)], [torch.arange(0)]
        for (a, b), responses in groups:
            own += [n for n in (b - a, *(d - c for c, d in responses)) if n]
            start, end = (responses[0][0], responses[-1][1]) if responses else (b, b)
            if start < end:
                queries.append(end - start)
                keys.append(b - a)
                rows.append(torch.arange(start, end))
                columns.append(torch.arange(a, b))
        shared = Sequences.of(queries, keys, device) if queries else None
        places = (sent(torch.cat(x), device) for x in (rows, columns))
        return cls(groups, Sequences.of(own, own, device), shared, *places)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scaling: float, window: int | None
) -> Tensor:
    """(1, Hq, N, D) from query (1, Hq, N, D), key and value (1, Hkv, N, D), in bfloat16 or float16.

    `window`: how many tokens a token sees, itself among them; None: all before it.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if window is None:
        out: Tensor = _Joined.apply(q, k, v, stretches, scaling)  # type: ignore[no-untyped-call]
    else:
        out = _windowed(q, k, v, stretches.groups, scaling, window)
    return out.transpose(0, 1).unsqueeze(0)


class _Joined(torch.autograd.Function):
    """(N, Hq, D): each response sees its prompt and itself."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, stretches: Stretches, scaling: float
    ) -> Tensor:
        out, total, states = _attended(query, key, value, stretches.own, scaling, causal=True)
        if stretches.shared is not None:
            rows, columns = stretches.responses, stretches.prompts
            q, k, v = query[rows], key[columns], value[columns]
            seen, other, more = _attended(q, k, v, stretches.shared, scaling, causal=False)
            states += more
            mine = total[:, rows]
            ahead = other - mine  # (Hq, R)
            # Sums are float32 for both types that the kernel takes.
            before, after = (x.to(total.dtype) for x in (out[rows], seen))
            joined = torch.lerp(before, after, torch.sigmoid(ahead).t()[..., None])
            out = out.index_copy(0, rows, joined.to(out.dtype))
            total = total.index_copy(1, rows, mine + F.softplus(ahead))
        ctx.save_for_backward(query, key, value, out, total, *states)
        ctx.stretches, ctx.scaling = stretches, scaling
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total, *states = ctx.saved_tensors
        stretches, grad = ctx.stretches, grad.contiguous()
        dq, dk, dv = _gradients(
            grad, query, key, value, out, total, states[:2], stretches.own, ctx.scaling, causal=True
        )
        if stretches.shared is not None:
            rows, columns = stretches.responses, stretches.prompts
            q, k, v = _gradients(
                grad[rows], query[rows], key[columns], value[columns], out[rows], total[:, rows], states[2:],
                stretches.shared, ctx.scaling, causal=False,
            )  # fmt: skip
            dq.index_add_(0, rows, q)
            dk.index_add_(0, columns, k)
            dv.index_add_(0, columns, v)
        return dq, dk, dv, None, None


def _windowed(
    query: Tensor, key: Tensor, value: Tensor, groups: Groups, scaling: float, window: int
) -> Tensor:
    """Where tokens see the last `window` only: one call, for which each response has the end of its prompt before it."""
    queries, keys, places = [], [], []
    for (a, b), responses in groups:
        for c, d in ((a, b), *responses):
            if c < d:
                tail = range(max(a, b - window + 1), b) if c != a else range(0)
                places += [torch.arange(tail.start, tail.stop), torch.arange(c, d)]
                queries.append(d - c)
                keys.append(len(tail) + d - c)
    columns = sent(torch.cat(places), query.device)
    sequences = Sequences.of(queries, keys, query.device)
    k, v = key.index_select(0, columns), value.index_select(0, columns)
    out: Tensor = _Windowed.apply(query, k, v, sequences, scaling, window)  # type: ignore[no-untyped-call]
    return out


class _Windowed(torch.autograd.Function):
    """(N, Hq, D): the last query of a sequence sees its last `window` keys, the one before it one key less far, and so on."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, window: int
    ) -> Tensor:
        out, total, states = _attended(query, key, value, sequences, scaling, causal=True, window=window)
        ctx.save_for_backward(query, key, value, out, total, *states)
        ctx.how = sequences, scaling, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total, *states = ctx.saved_tensors
        sequences, scaling, window = ctx.how
        grads = _gradients(
            grad.contiguous(), query, key, value, out, total, states, sequences, scaling, causal=True, window=window,
        )  # fmt: skip
        return *grads, None, None, None


def _attended(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float, *, causal: bool,
    window: int | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """out (N, Hq, D), log-sum-exp (Hq, N), and what the backward pass wants back. Causal: the last query sees the last key."""
    s, (left, right) = sequences, _reach(causal, window)
    out, total, state, unused, _ = _flash(
        query, key, value, s.queries, s.keys, s.longest_query, s.longest_keys, 0.0, causal, False,
        scale=scaling, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return out, total, [state, unused]


def _gradients(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, total: Tensor, states: Sequence[Tensor],
    sequences: Sequences, scaling: float, *, causal: bool, window: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and value, in their shapes."""
    s, (left, right) = sequences, _reach(causal, window)
    found: tuple[Tensor, Tensor, Tensor] = _flash_backward(
        grad, query, key, value, out, total, s.queries, s.keys, s.longest_query, s.longest_keys, 0.0, causal, *states,
        scale=scaling, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return found


def _reach(causal: bool, window: int | None) -> tuple[int, int]:
    """How many keys a query sees before its own place and after it; -1: all."""
    return -1 if window is None else window - 1, 0 if causal else -1
