"""Columns of tokens from numbers of responses and of chosen tokens: what estimators of advantages are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrft.algorithms.segments import reverse_scan
from lightrft.types import Batch


def spread(values: Tensor, batch: Batch) -> Tensor:
    """One value per response (S,) given to each of its masked-in tokens, (T,)."""
    assert batch.rewards is not None
    return torch.where(batch.mask, values[batch.segments], 0.0).to(batch.rewards.dtype)


def returns_of(batch: Batch, discount: float = 1.0) -> Tensor:
    """The reward still to come from each chosen token on, (T,); 0 outside the mask."""
    assert batch.rewards is not None, "fill batch.rewards (token_rewards) before advantages"
    # Tokens that the policy did not choose (a tool's output) are no time steps: they are stepped over.
    to_come = reverse_scan(batch.rewards[batch.mask], batch.segments[batch.mask], discount)
    return at_chosen(to_come, batch)


def at_chosen(values: Tensor, batch: Batch) -> Tensor:
    """One value per chosen token, in order, as a column (T,) that is 0 outside the mask."""
    return values.new_zeros(batch.num_tokens).masked_scatter(batch.mask, values)
