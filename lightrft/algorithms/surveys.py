"""Policy losses that choose tokens by looking at all tokens of an update first.

What they look at is a statistic of the whole mini-batch on all ranks under the policy as it is, so that micro-batches, packing and
the number of devices cannot change it. The trainer reads the mini-batch once more before its gradient (trainer/survey.py) and asks the
loss's `survey` for one number per token, which the loss then finds in `batch.marks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightrft.algorithms.ratios import advantages_of, clipped_terms, log_ratio, pessimistic
from lightrft.algorithms.shaping import moments
from lightrft.config import AlgorithmConfig
from lightrft.config.ranges import NOT_NEGATIVE, POSITIVE, SOME, Range
from lightrft.types import Batch, Terms

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over ranks; called equally often on all of them."""
FRACTION, COVARIANCE, PENALTY, LIMIT = 2e-4, (1.0, 5.0), 1.0, 0.04
"""The papers' share of tokens, bounds of the covariance, weight of the divergence, and bound of the second moment."""
_BOUND = 1 << 32


def clip_cov(
    new: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,
    *,
    covariance_fraction: float = FRACTION,
    covariance_low: float = COVARIANCE[0],
    covariance_high: float = COVARIANCE[1],
) -> Terms:
    """Clipped loss without some of the tokens that make the entropy fall most: those whose log-prob and advantage vary together.

    c_t = (log p_t - mean log p) * (A_t - mean A), means over all tokens of the update; of the tokens with covariance_low < c_t < covariance_high that no
    clip stops, so many as are covariance_fraction of all tokens (at least one) have loss 0. Clip-Cov, Cui et al. 2025, The Entropy Mechanism
    (https://arxiv.org/abs/2505.22617), eqs. 10 and 11. Theirs are drawn at random; here a hash of the log-prob at sampling and the place
    in the response draws them, so that packing and ranks change nothing.
    """
    loss, stopped = pessimistic((difference := log_ratio(new, batch)).exp(), advantages_of(batch), algo)
    marked = _marks(batch) > 0
    return clipped_terms(torch.where(marked, 0.0, loss), difference, stopped | marked)


def survey_clip_cov(
    present: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,
    reduce: Reduce,
    *,
    covariance_fraction: float = FRACTION,
    covariance_low: float = COVARIANCE[0],
    covariance_high: float = COVARIANCE[1],
) -> Tensor:
    """(T,) 1 for the tokens that clip_cov leaves out, from the log-probs (T,) under the policy as it is."""
    covariance = covariances(present, batch, reduce)
    _, stopped = pessimistic(log_ratio(present, batch).exp(), advantages_of(batch), algo)
    candidates = batch.mask & ~stopped & (covariance > covariance_low) & (covariance < covariance_high)
    return largest(_draw(batch), candidates, _wanted(batch, covariance_fraction, reduce), reduce).float()


def kl_cov(
    new: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,
    *,
    covariance_fraction: float = FRACTION,
    covariance_penalty: float = PENALTY,
) -> Terms:
    """Policy gradient with ratios, not clipped, and a pull back to the policy that sampled on the tokens that make the entropy fall most.

    loss_t = -ratio_t * A_t, and + covariance_penalty * |log ratio_t| on the covariance_fraction of all tokens (at least one) with the largest
    covariance c_t, see clip_cov. KL-Cov, Cui et al. 2025 (https://arxiv.org/abs/2505.22617), eqs. 12 and 13, with the divergence
    of their code.
    """
    difference = log_ratio(new, batch)
    marked = _marks(batch) > 0
    loss = -difference.exp() * advantages_of(batch)
    loss = loss + torch.where(marked, covariance_penalty * difference.abs(), 0.0)
    return clipped_terms(loss, difference, torch.zeros_like(marked))


def survey_kl_cov(
    present: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,
    reduce: Reduce,
    *,
    covariance_fraction: float = FRACTION,
    covariance_penalty: float = PENALTY,
) -> Tensor:
    """(T,) 1 for the tokens that kl_cov pulls back."""
    covariance = covariances(present, batch, reduce)
    return largest(covariance, batch.mask, _wanted(batch, covariance_fraction, reduce), reduce).float()


def m2po(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, second_moment_limit: float = LIMIT) -> Terms:
    """Policy gradient with ratios, without the tokens that have moved furthest with their advantage: as few as keep the mean square of the others within a bound.

    Of the tokens with A_t > 0 and ratio_t > 1, or A_t < 0 and ratio_t < 1, those with the largest (log ratio_t)^2 are left out until its mean over
    the remaining ones of the update is at most second_moment_limit; loss_t = -ratio_t * A_t for all others. M2PO, Zheng et al. 2025
    (https://arxiv.org/abs/2510.01161), algorithm 1, with their 0.04. Tokens that are equally far go together.
    """
    difference = log_ratio(new, batch)
    marked = _marks(batch) > 0
    loss = torch.where(marked, 0.0, -difference.exp() * advantages_of(batch))
    return clipped_terms(loss, difference, marked)


def survey_m2po(
    present: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,
    reduce: Reduce,
    *,
    second_moment_limit: float = LIMIT,
) -> Tensor:
    """(T,) 1 for the tokens that m2po leaves out."""
    moved = log_ratio(present, batch).detach()
    with_advantage = batch.mask & (moved * advantages_of(batch) > 0)
    square = moved.square()
    places = _ordered(square)

    def fits(bound: int) -> bool:
        kept = with_advantage & (places <= bound)
        total, count = reduce(torch.stack([square[kept].double().sum(), kept.sum().double()])).tolist()
        return bool(total <= second_moment_limit * count)

    return (with_advantage & (places > _last(fits))).float()


def covariances(present: Tensor, batch: Batch, reduce: Reduce) -> Tensor:
    """(T,) float64: how log-prob and advantage of each token vary together, over the masked-in tokens of all ranks; 0 elsewhere."""
    values, advantages = present.detach().double(), advantages_of(batch).double()
    log_probs, gains = moments(values[batch.mask], reduce).mean, moments(advantages[batch.mask], reduce).mean
    return torch.where(batch.mask, (values - log_probs) * (advantages - gains), 0.0)


def largest(values: Tensor, among: Tensor, wanted: int, reduce: Reduce) -> Tensor:
    """(T,) bool: the `wanted` largest of the values that are `among` (T,) bool, over all ranks; all if there are fewer.

    Values that are equal as float32 are chosen together, so there may be more.
    """
    places = -_ordered(values)

    def fits(bound: int) -> bool:
        return bool(reduce((among & (places < bound)).sum()) < wanted)

    # With the last bound below which there are fewer than wanted, those at it are the last ones.
    return among & (places <= _last(fits))


def _last(fits: Callable[[int], bool]) -> int:
    """The largest whole number of 33 bits that fits, where all smaller ones do."""
    low, high = -_BOUND, _BOUND
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _ordered(values: Tensor) -> Tensor:
    """(T,) int64 in the order of these numbers as float32: their bits, those of negative ones turned round."""
    bits = (values.float() + 0.0).view(torch.int32).long()  # + 0.0: -0.0 is 0.0
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _wanted(batch: Batch, fraction: float, reduce: Reduce) -> int:
    """The number of tokens that is this fraction of the chosen tokens of all ranks, rounded down, but at least one."""
    return max(1, math.floor(fraction * int(reduce(batch.mask.sum())) + 1e-9))


def _draw(batch: Batch) -> Tensor:
    """(T,) numbers from 0 to 1 that look random: a hash (Murmur3's finish) of the log-prob at sampling and the place in the response."""
    first = torch.searchsorted(batch.segments, batch.segments)  # of its response
    place = torch.arange(batch.num_tokens, device=batch.segments.device) - first
    mixed = batch.behavior.float().view(torch.int32).long() & 0xFFFFFFFF
    mixed = mixed ^ ((place * 0x9E3779B1) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 16)).double() / 2**32


def _marks(batch: Batch) -> Tensor:
    assert batch.marks is not None, "fill batch.marks (the loss's survey of the update) before this loss"
    return torch.where(batch.mask, batch.marks, 0.0)


clip_cov.survey = survey_clip_cov  # type: ignore[attr-defined]
kl_cov.survey = survey_kl_cov  # type: ignore[attr-defined]
m2po.survey = survey_m2po  # type: ignore[attr-defined]
clip_cov.ranges = {"covariance_fraction": SOME, "covariance_low": Range(), "covariance_high": POSITIVE}  # type: ignore[attr-defined]
kl_cov.ranges = {"covariance_fraction": SOME, "covariance_penalty": NOT_NEGATIVE}  # type: ignore[attr-defined]
m2po.ranges = {"second_moment_limit": POSITIVE}  # type: ignore[attr-defined]
for _ratio in (kl_cov, m2po):
    setattr(_ratio, "needs_updates", True)  # noqa: B010  # mypy knows no attributes of functions
    setattr(_ratio, "unused_settings", ("clip",))  # noqa: B010
for _alone in (clip_cov, kl_cov, m2po):  # once the marks are there
    setattr(_alone, "entrywise", True)  # noqa: B010
for _led in (
    clip_cov,
    m2po,
):  # once the marks are there; kl_cov pulls marked tokens back, whatever their advantage
    setattr(_led, "zero_without_advantage", True)  # noqa: B010

SURVEYING: Mapping[str, Callable[..., Terms]] = {"clip_cov": clip_cov, "kl_cov": kl_cov, "m2po": m2po}
