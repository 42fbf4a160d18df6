"""The tokens that each token of a response was drawn among, where top-k, top-p or min-p left a part of the vocabulary.

A support is a pair of int32 tensors: (L,) how many tokens each of L was drawn among, 0 where it was the whole vocabulary; and their ids, end to
end. Ids, and no threshold, since other weights would leave other tokens above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightrft.types import Completion, Trajectory

Support = tuple[Tensor, Tensor]


def of_tokens(parts: Sequence[Tensor]) -> Support:
    """From the ids that each token was drawn among, (k,) int32; (0,) for the whole vocabulary."""
    counts = torch.tensor([len(part) for part in parts], dtype=torch.int32)
    return counts, torch.cat(list(parts)) if parts else counts.clone()


def added(known: Support | None, before: int, more: Support | None, new: int) -> Support | None:
    """The support of a response of `before` tokens that gets `new` ones: of those that nothing is known of, the whole vocabulary."""
    if known is None and more is None:
        return None
    parts = [_filled(known, before), _filled(more, new)]
    return torch.cat([counts for counts, _ in parts]), torch.cat([ids for _, ids in parts])


def _filled(known: Support | None, length: int) -> Support:
    """The support of `length` tokens, of which that of the first ones is known."""
    counts, ids = known or (torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
    return torch.cat([counts, counts.new_zeros(length - len(counts))]), ids


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


def fault(completion: Completion) -> str:
    """What is wrong with the support that an engine tells; empty: nothing."""
    if completion.support is None:
        return "no support"
    counts, ids = completion.support
    if len(counts) != len(completion.token_ids) or int(counts.sum()) != len(ids):
        return f"a support of {len(counts)} counts, {int(counts.sum())} in all, and {len(ids)} ids for {len(completion.token_ids)} tokens"
    tokens = torch.tensor(completion.token_ids, dtype=ids.dtype)
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    here = torch.zeros(len(counts), dtype=torch.bool).index_fill(0, rows[ids == tokens[rows]], True)
    outside = ~here & (counts > 0)
    return f"{int(outside.sum())} tokens that are not in their own support" if outside.any() else ""


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
