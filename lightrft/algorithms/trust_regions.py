"""Policy losses that hold the policy back otherwise than by a clip of the ratio: by probabilities, by the ratio of a response, by a square."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightrft.algorithms.kl import MAX_EXPONENT
from lightrft.algorithms.ratios import advantages_of, clipped_terms, drift_of, log_ratio
from lightrft.algorithms.segments import segment_sum
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch, Terms


def dppo(
    new: Tensor, batch: Batch, algo: AlgorithmConfig, *, ratio_limit: float = 20.0, kl: float = 0.0
) -> Terms:
    """Trust region of probabilities, not of ratios: a token stops learning once its probability has moved too far with its advantage.

    loss_t = -A_t * sg(min(ratio_t, ratio_limit)) * log p_t, without gradient where A_t > 0 and p_t - p_old > clip[1], or A_t <= 0 and p_old -
    p_t > clip[0]. DPPO with binary total variation, Qi et al. 2026 (https://arxiv.org/abs/2602.04879); a rare token may double
    its probability, a frequent one may not lose a fifth of it. With `kl` 1 the distance is KL(old || new) of "this token or another".
    """
    if ratio_limit <= 1 or kl not in (0, 1):
        raise ValueError(
            f"algorithm.options: ratio_limit={ratio_limit} must be above 1, and kl={kl} must be 0 or 1."
        )
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    moved = difference.detach()
    old = torch.where(batch.mask, new.detach(), 0.0) - moved
    far = _binary_kl(old, old + moved) if kl else (old + moved).exp() - old.exp()
    above = far > algo.clip[1] if not kl else (far > algo.clip[1]) & (moved > 0)
    below = far < -algo.clip[0] if not kl else (far > algo.clip[0]) & (moved < 0)
    stopped = torch.where(advantages > 0, above, below)
    weight = moved.exp().clamp(max=ratio_limit) * ~stopped
    return clipped_terms(-advantages * weight * torch.where(batch.mask, new, 0.0), difference, stopped)


def _binary_kl(old: Tensor, new: Tensor) -> Tensor:
    """KL of two choices "this token or another", from its log-probs."""
    p = old.exp()
    others = torch.log1p(-p.clamp(max=1 - 1e-7)) - torch.log1p(-new.exp().clamp(max=1 - 1e-7))
    return p * (old - new) + (1 - p) * others


def dcpo(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, ratio_limit: float = 10.0) -> Terms:
    """Clipped loss whose bounds widen as the token's probability at sampling falls.

    loss_t = -min(ratio_t A_t, clip(ratio_t, l_t, h_t) A_t) with l_t = (1 + sqrt(max(1 - 4 clip[0] / p_old, 0))) / 2 and
    h_t = min((1 + sqrt(1 + 4 clip[1] / p_old)) / 2, ratio_limit). DCPO, Yang et al. 2025 (https://arxiv.org/abs/2509.02333); it bounds ratio * (ratio - 1) * p_old, where PPO bounds ratio - 1. They use clip [0.16, 0.2].
    """
    if ratio_limit <= 1:
        raise ValueError(
            f"algorithm.options.ratio_limit={ratio_limit}: a bound of the ratio, so above 1, e.g. 10."
        )
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    ratio = difference.exp()
    inverse = (difference - torch.where(batch.mask, new, 0.0)).detach().exp()  # 1 / p_old
    low = (1 + (1 - 4 * algo.clip[0] * inverse).clamp(min=0).sqrt()) / 2
    high = ((1 + (1 + 4 * algo.clip[1] * inverse).sqrt()) / 2).clamp(max=ratio_limit)
    bounded = torch.minimum(torch.maximum(ratio, low), high)
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    return clipped_terms(loss, difference, (ratio - bounded) * advantages > 0)


def topr(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, weight_limit: float = 1.0) -> Terms:
    """Off-policy policy gradient: what was good is imitated at full weight, what was bad only as far as the policy would still say it.

    loss_t = -A_t * w_i * log p_t with w_i = 1 where A_t > 0, else sg(min(product of the response's ratios, weight_limit)). TOPR, Le Roux et
    al. 2025 (https://arxiv.org/abs/2503.14286), with their [0, 1] for bad responses and no ratio for good ones. No trust region is
    needed: the weight of a bad response vanishes with its probability.
    """
    if weight_limit <= 0:
        raise ValueError(f"algorithm.options.weight_limit={weight_limit}: must be above 0; the paper has 1.")
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    whole = segment_sum(difference.detach(), batch.segments, batch.num_sequences)
    weight = whole.clamp(max=MAX_EXPONENT).exp().clamp(max=weight_limit)[batch.segments]
    weight = torch.where(advantages > 0, 1.0, weight)
    loss = -advantages * weight * torch.where(batch.mask, new, 0.0)
    return clipped_terms(loss, difference, (weight < 1) & (advantages < 0))


def dro(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, beta: float = 0.1) -> Terms:
    """Policy gradient with a square of the log-ratio as leash, right for data of any age.

    loss_t = -A_t log p_t + (beta / 2) (log ratio_t)^2. DRO, Richemond et al. 2024 (https://arxiv.org/abs/2405.19107), with the group's
    baseline in place of their value, and per token as in verl.
    """
    if beta <= 0:
        raise ValueError(f"algorithm.options.beta={beta}: must be above 0.")
    difference = log_ratio(new, batch)
    loss = -advantages_of(batch) * torch.where(batch.mask, new, 0.0) + beta / 2 * difference.square()
    return Terms(loss, drift_of(difference))


TRUST_REGIONS: Mapping[str, Callable[..., Terms]] = {
    "dppo": dppo,
    "dcpo": dcpo,
    "topr": topr,
    "dro": dro,
}
