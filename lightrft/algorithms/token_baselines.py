"""A baseline for every token: the siblings' rewards at the same step, weighted by the gradient that each has gathered by then."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrft.algorithms.segments import reverse_scan, segment_sum
from lightrft.types import Batch


def energies(batch: Batch) -> Tensor:
    """(K,) float64 of the K chosen tokens: the sum of 1 - 2 p + sum_v p_v^2 over those of its response up to and with each.

    That is the squared gradient of log p by the logits. p is that of batch.old, or of batch.behavior where there is none, sum_v p_v^2 is
    batch.squares; rounding below 0 is taken for 0. ValueError where that column is missing.
    """
    if batch.squares is None:
        raise ValueError(
            "algorithm.advantage=optimal_token_baseline: some responses were scored by a run with another advantage, so that the sum of "
            "squared probabilities at their tokens is not known. Go on with that one, or begin a new run."
        )
    p = (batch.behavior if batch.old is None else batch.old)[batch.mask].double().exp()
    energy = (1 - 2 * p + batch.squares[batch.mask].double()).clamp(min=0)
    return _so_far(energy, batch.segments[batch.mask])


def token_baselines(worth: Tensor, batch: Batch, group: Tensor) -> Tensor:
    """(K,) float64: the mean of `worth` over the siblings' tokens of the same step, weighted by `energies`.

    `worth` (K,) float64 of the chosen tokens; `group` (S,) from 0. Steps count chosen tokens. 0 where no sibling gets so far, and where
    nothing has energy, since all tokens so far were certain.
    """
    if not worth.numel():
        return worth
    answer = batch.segments[batch.mask]
    ones = torch.ones_like(worth)
    step = _so_far(ones, answer).long() - 1
    steps = int(step.max()) + 1
    place = group[answer] * steps + step
    size = (int(group.max()) + 1) * steps
    weight = energies(batch)
    count, mass, total = (segment_sum(x, place, size)[place] for x in (ones, weight, weight * worth))
    return torch.where((count > 1) & (mass > 0), total / torch.where(mass > 0, mass, 1.0), 0.0)


def _so_far(values: Tensor, answer: Tensor) -> Tensor:
    """The sum of `values` within each response up to and with each token."""
    return reverse_scan(values.flip(0), answer.flip(0), 1.0).flip(0)
