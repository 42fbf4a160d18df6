"""The tokens that each token of a response was drawn among, where top-k, top-p or min-p left a part of the vocabulary.

A support is a pair of int32 tensors: (L,) how many tokens each of L was drawn among, 0 where it was the whole vocabulary; and their ids, end to
end. Ids, and no threshold, since other weights would leave other tokens above it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from lightrft.types import Completion, Prompt, Sampling, Trajectory

Support = tuple[Tensor, Tensor]


@dataclass(slots=True)
class Growing:
    """The support of a response on its way, in 4 bytes for each token and for each id."""

    _counts: array[int] = field(default_factory=lambda: array("i"))
    _ids: array[int] = field(default_factory=lambda: array("i"))

    def add(self, ids: Tensor) -> None:
        """What the next token was drawn among: (k,) whole numbers on the CPU; (0,) for the whole vocabulary."""
        self._counts.append(len(ids))
        self._ids.frombytes(ids.int().numpy().tobytes())

    def so_far(self) -> Support | None:
        """A copy of what is known by now; None where that is of no token."""
        if not self._counts:
            return None
        return torch.from_numpy(numpy.array(self._counts)), torch.from_numpy(numpy.array(self._ids))


def added(known: Support | None, before: int, more: Support | None, new: int) -> Support | None:
    """The support of a response of `before` tokens that gets `new` ones: of those that nothing is known of, the whole vocabulary."""
    if known is None and more is None:
        return None
    parts = [_filled(known, before), _filled(more, new)]
    return torch.cat([counts.int() for counts, _ in parts]), torch.cat([ids.int() for _, ids in parts])


def _filled(known: Support | None, length: int) -> Support:
    """The support of `length` tokens, of which that of the first ones is known."""
    counts, ids = known or (torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
    return torch.cat([counts, counts.new_zeros(length - len(counts))]), ids


def repeated(trajectories: Sequence[Trajectory], length: int) -> Support | None:
    """The support of `length` tokens, which are those of these responses, end to end and again from the first; None where none has any."""
    if all(t.support is None for t in trajectories):
        return None
    known, filled = Growing(), [_filled(t.support, len(t)) for t in trajectories]
    parts = [part for counts, ids in filled for part in ids.split(counts.tolist())]
    for part in islice(cycle(parts), length):
        known.add(part)
    return known.so_far()


def packed(trajectories: Sequence[Trajectory]) -> Tensor | None:
    """(2, M) int64: for each id of all supports which of the T response tokens was drawn with it, and the id. None where all was drawn from all."""
    rows, ids, start = list[Tensor](), list[Tensor](), 0
    for t in trajectories:
        if t.support is not None:
            counts, own = t.support
            places = torch.arange(start, start + len(counts))
            rows.append(torch.repeat_interleave(places, counts.long()))
            ids.append(own.long())
        start += len(t)
    return torch.stack([torch.cat(rows), torch.cat(ids)]) if sum(map(len, ids)) else None


def restricts(sampling: Sampling) -> bool:
    """Whether every token is sampled among a part of the vocabulary: top-k, top-p or min-p are set."""
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


def restricted(sampling: Sampling, prompt: Prompt, count: int) -> int:
    """How many of the first of `count` tokens that are sampled of a response top-k, top-p or min-p, or first_token_top_k, leave a part for."""
    if not sampling.temperature:
        return 0
    if restricts(sampling):
        return count
    begins = prompt.continuation is None or not prompt.continuation.tokens
    return min(count, 1) if sampling.first_token_top_k and begins else 0


def fault(completion: Completion, restricted: int = 0) -> str:
    """What is wrong with the support that an engine tells, of which it must know that of the first `restricted` tokens; empty: nothing."""
    if completion.support is None:
        return "no support" if completion.token_ids else ""
    if malformed := _malformed(completion.support):
        return malformed
    counts, ids = completion.support
    if len(counts) != len(completion.token_ids) or int(counts.sum()) != len(ids):
        return f"a support of {len(counts)} counts, {int(counts.sum())} in all, and {len(ids)} ids for {len(completion.token_ids)} tokens"
    if lacking := int((counts[:restricted] == 0).sum()):
        return f"no ids for {lacking} tokens, which were drawn among a part of the vocabulary"
    tokens = torch.tensor(completion.token_ids, dtype=ids.dtype)
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    here = torch.zeros(len(counts), dtype=torch.bool).index_fill(0, rows[ids == tokens[rows]], True)
    outside = ~here & (counts > 0)
    return f"{int(outside.sum())} tokens that are not in their own support" if outside.any() else ""


def _malformed(support: object) -> str:
    """Why this is no support, whatever it is of; empty: it is."""
    if not (
        isinstance(support, tuple) and len(support) == 2 and all(isinstance(part, Tensor) for part in support)
    ):
        return f"a support of type {type(support).__name__}, and not a tuple of two tensors"
    for name, part in zip(("counts", "ids"), support, strict=True):
        if part.dim() != 1 or part.dtype not in (torch.int32, torch.int64) or part.device.type != "cpu":
            is_now = f"{part.dtype} {tuple(part.shape)} on {part.device}"
            return f"a support whose {name} are {is_now}, and not int32 or int64 (n,) on cpu"
        if (part < 0).any():
            return f"a support with {int(part.min())} among its {name}"
    return ""


class Among(NamedTuple):
    """The tokens that each of Q distributions is of, where sampling left a part of the vocabulary; one row more stands for those of other ranks."""

    rows: Tensor
    """(M,) int64, the distribution of each token that was left; Q for those of other ranks."""
    ids: Tensor
    """(M,) int64, the tokens."""
    restricted: Tensor
    """(Q + 1,) bool, whether a part was left; elsewhere all tokens count."""

    @classmethod
    def of(cls, support: Tensor | None, own: Tensor | None, count: int) -> Among | None:
        """From `Inputs.support` of `count` response tokens, for the distributions of those in `own` (Q,) int64; None: of all."""
        if support is None:
            return None
        rows, ids = support
        if own is not None:
            place = rows.new_full((count,), len(own))
            place[own] = torch.arange(len(own), device=rows.device)
            rows, count = place[rows], len(own)
        restricted = torch.zeros(count + 1, dtype=torch.bool, device=rows.device)
        return cls(rows, ids, restricted.index_fill_(0, rows, True))

    def left_out(self, block: slice) -> Tensor:
        """(Q, width) bool: the tokens of a block of the vocabulary that sampling did not leave. No device is waited for."""
        width = block.stop - block.start
        found = self.restricted[:, None].repeat(1, width + 1)  # the last column stands for all other blocks
        here = (self.ids >= block.start) & (self.ids < block.stop)
        found[self.rows, torch.where(here, self.ids - block.start, width)] = False
        return found[:-1, :-1]
