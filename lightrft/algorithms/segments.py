"""Sums, means and scans over the sequences of a packed batch.

`segments` (T,) says which sequence a token belongs to and never decreases. A sequence may have no token at
all (a response of zero tokens), so the number of sequences S is always passed and never read off the largest
segment number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, segments: Tensor, num_sequences: int) -> Tensor:
    """The sum of `values` (T,) in each sequence, (S,); 0 for one without tokens. Differentiable.

    Here `segments` may come in any order. On CUDA the order of summation, and so the last bit, is not fixed.
    """
    return values.new_zeros(num_sequences).index_add(0, segments, values)


def segment_count(mask: Tensor, segments: Tensor, num_sequences: int) -> Tensor:
    """How many tokens of each sequence are in the mask, (S,) int64."""
    return segment_sum(mask.long(), segments, num_sequences)


def segment_mean(values: Tensor, segments: Tensor, num_sequences: int, *, mask: Tensor) -> Tensor:
    """The mean of `values` (T,) over the masked-in tokens of each sequence, (S,); 0 where there are none."""
    total = segment_sum(torch.where(mask, values, 0.0), segments, num_sequences)
    return total / segment_count(mask, segments, num_sequences).clamp(min=1)


def last_of_segment(segments: Tensor, *, mask: Tensor) -> Tensor:
    """(T,) bool, True at the last masked-in token of each sequence; nowhere in one without such a token."""
    return mask & (reverse_scan(mask.long(), segments, 1) == 1)


def reverse_scan(values: Tensor, segments: Tensor, discount: float) -> Tensor:
    """What is still to come: out_t = values_t + discount * out_{t+1} within each sequence, (T,).

    Doubling scan: log2(T) vector operations. out_t depends on its own sequence only, bit for bit, whatever
    else is packed beside it.
    """
    out, reach, factor = values, 1, discount
    while reach < out.numel():
        same = segments[:-reach] == segments[reach:]
        if not bool(same.any()):
            break
        ahead = torch.where(same, out[reach:], 0)
        out = torch.cat([out[:-reach] + factor * ahead, out[-reach:]])
        reach, factor = 2 * reach, factor * factor
    return out
