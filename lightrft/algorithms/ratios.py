"""How far the policy has moved from the one that sampled, token by token: what policy losses are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrft.algorithms.kl import MAX_EXPONENT, k3
from lightrft.algorithms.segments import segment_mean, segment_sum
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch, Terms


def log_ratio(new: Tensor, batch: Batch) -> Tensor:
    """log(new / old), (T,), clamped to [-20, 20] so that its exp cannot overflow; 0 outside the mask.

    Where it is clamped it has no gradient. verl clamps at the same place.
    """
    old = new.detach() if batch.old is None else batch.old
    return torch.where(batch.mask, new - old, 0.0).clamp(-MAX_EXPONENT, MAX_EXPONENT)


def clipped_terms(loss: Tensor, difference: Tensor, stopped: Tensor) -> Terms:
    """A loss with its diagnostics, from the log-ratio and where a clip acts, all (T,)."""
    low, high = (stopped & side for side in (difference < 0, difference > 0))
    acts = {"clip/fraction": stopped, "clip/low": low, "clip/high": high}
    return Terms(
        loss, {**drift_of(difference), **{name: where.to(loss.dtype) for name, where in acts.items()}}
    )


def pessimistic(ratio: Tensor, advantages: Tensor, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The clipped loss for any ratio, and where the clip stops its gradient; both (T,)."""
    bounded = ratio.clamp(1 - algo.clip[0], 1 + algo.clip[1])
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    return loss, (ratio - bounded) * advantages > 0


def response_mean(values: Tensor, batch: Batch) -> Tensor:
    """(T,) each token has the mean of `values` over the chosen tokens of its response."""
    return segment_mean(values, batch.segments, batch.num_sequences, mask=batch.mask)[batch.segments]


def response_sum(values: Tensor, batch: Batch) -> Tensor:
    """(T,) each token has the sum of `values` over the chosen tokens of its response."""
    chosen = torch.where(batch.mask, values, 0.0)
    return segment_sum(chosen, batch.segments, batch.num_sequences)[batch.segments]


def advantages_of(batch: Batch) -> Tensor:
    """(T,) the advantages, 0 outside the mask."""
    assert batch.advantages is not None, "fill batch.advantages before the loss"
    return torch.where(batch.mask, batch.advantages, 0.0)


def drift_of(difference: Tensor) -> dict[str, Tensor]:
    """How far the policy has moved since sampling: the ratio, and the k3 estimate of KL(old || new)."""
    difference = difference.detach()
    return {"ratio/mean": difference.exp(), "approx_kl": k3(-difference, torch.zeros_like(difference))}
