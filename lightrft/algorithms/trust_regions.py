"""Policy losses that hold the policy back otherwise than by a clip of the ratio: by probabilities, by the ratio of a response, by a square."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightrft.algorithms.kl import MAX_EXPONENT
from lightrft.algorithms.ratios import advantages_of, clipped_terms, drift_of, log_ratio
from lightrft.algorithms.segments import segment_sum
from lightrft.config import AlgorithmConfig
from lightrft.config.ranges import POSITIVE, Range
from lightrft.types import Batch, Terms


def dppo(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, ratio_limit: float = 20.0) -> Terms:
    """Trust region of probabilities, not of ratios: a token stops learning once its probability has moved too far with its advantage.

    loss_t = -A_t * sg(min(ratio_t, ratio_limit)) * log p_t, without gradient where A_t > 0 and p_t - p_old > clip[1], or A_t <= 0 and p_old -
    p_t > clip[0]. DPPO with binary total variation, Qi et al. 2026 (https://arxiv.org/abs/2602.04879); a rare token may double
    its probability, a frequent one may not lose a fifth of it.
    """
    old, moved = _old_and_moved(new, batch)
    far = (old + moved).exp() - old.exp()
    return _within(new, batch, far > algo.clip[1], far < -algo.clip[0], ratio_limit)


def dppo_kl(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, ratio_limit: float = 20.0) -> Terms:
    """The loss of dppo, whose distance is the divergence KL(old || new) of the choice "this token or another".

    DPPO with binary KL, Qi et al. 2026 (https://arxiv.org/abs/2602.04879); `clip` bounds the divergence.
    """
    old, moved = _old_and_moved(new, batch)
    far = _binary_kl(old, old + moved)
    return _within(
        new, batch, (far > algo.clip[1]) & (moved > 0), (far > algo.clip[0]) & (moved < 0), ratio_limit
    )


def _old_and_moved(new: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-prob at sampling and how far it has moved, both (T,) without gradient."""
    moved = log_ratio(new, batch).detach()
    return torch.where(batch.mask, new.detach(), 0.0) - moved, moved


def _within(new: Tensor, batch: Batch, above: Tensor, below: Tensor, ratio_limit: float) -> Terms:
    """The weighted policy gradient of the tokens that are not too far `above` with a good advantage, or `below` with another."""
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    stopped = torch.where(advantages > 0, above, below)
    weight = difference.detach().exp().clamp(max=ratio_limit) * ~stopped
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
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    ratio = difference.exp()
    inverse = (
        (difference - torch.where(batch.mask, new, 0.0)).detach().clamp(max=MAX_EXPONENT).exp()
    )  # 1 / p_old
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
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    whole = segment_sum(difference.detach(), batch.segments, batch.num_sequences)
    weight = whole.clamp(max=MAX_EXPONENT).exp().clamp(max=weight_limit)[batch.segments]
    weight = torch.where(advantages > 0, 1.0, weight)
    loss = -advantages * weight * torch.where(batch.mask, new, 0.0)
    return clipped_terms(loss, difference, (weight < 1) & (advantages < 0))


def dro(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, beta: float = 0.1) -> Terms:
    """Policy gradient with a square of the log-ratio to the policy that sampled as leash.

    loss_t = -A_t log p_t + (beta / 2) (log ratio_t)^2. DRO, Richemond et al. 2024 (https://arxiv.org/abs/2405.19107), with the group's
    baseline in place of their value, and per token as in verl.
    """
    difference = log_ratio(new, batch)
    loss = -advantages_of(batch) * torch.where(batch.mask, new, 0.0) + beta / 2 * difference.square()
    return Terms(loss, drift_of(difference))


def aspo(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, ratio_limit: float = 3.0) -> Terms:
    """Clipped loss in which a good token weighs by the inverse of its ratio: what has become likely is pushed less, what is still unlikely more.

    Good tokens (A_t > 0): loss_t = -A_t * r_t / sg(r_t)^2 with r_t = min(ratio_t, 1 + clip[1]), so that the weight of the gradient is 1 / r_t. Others: loss_t
    = -A_t * max(ratio_t, 1 - clip[0]). Where the weight exceeds `ratio_limit` the loss is -A_t * ratio_limit * log p_t, which keeps the gradient.
    ASPO, Wang et al. 2025 (https://arxiv.org/abs/2510.06062), with one pair of bounds for all tokens; their code has others for tokens of
    high entropy.
    """
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    ratio, good = difference.exp(), advantages > 0
    bounded = torch.where(good, ratio.clamp(max=1 + algo.clip[1]), ratio.clamp(min=1 - algo.clip[0]))
    still = bounded.detach()
    weighted = torch.where(good, bounded / still.square().clamp(min=1e-12), bounded)
    heavy = torch.where(good, 1 / still.clamp(min=1e-6), still) > ratio_limit
    log_prob = torch.where(batch.mask, new, 0.0)
    loss = -advantages * torch.where(heavy, ratio_limit * log_prob, weighted)
    stopped = (ratio.detach() != still) & (advantages != 0)
    return clipped_terms(loss, difference, stopped)


def vespo(
    new: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,
    *,
    k_positive: float = 2.0,
    lambda_positive: float = 3.0,
    k_negative: float = 3.0,
    lambda_negative: float = 2.0,
) -> Terms:
    """Policy gradient whose weight is a smooth hill over the ratio of the whole response: 1 at ratio 1, and less and less far from it.

    loss_t = -A_t * sg(phi(w_i)) * log p_t, w_i the product of the response's ratios, phi(w) = w^k * exp(lambda * (1 - w)), with other k and lambda
    for A_t < 0. VESPO, Shen et al. 2026 (https://arxiv.org/abs/2602.10693), with their defaults; no length takes a root of the product. The hill is highest at
    w = k / lambda: below 1 for good responses, above it for bad ones.
    """
    advantages, difference = advantages_of(batch), log_ratio(new, batch)
    whole = segment_sum(difference.detach(), batch.segments, batch.num_sequences)
    log_weight = whole.clamp(-MAX_EXPONENT, MAX_EXPONENT)[batch.segments]
    good = advantages >= 0
    power = torch.where(good, k_positive, k_negative)
    decay = torch.where(good, lambda_positive, lambda_negative)
    weight = (power * log_weight + decay * (1 - log_weight.exp())).exp()
    loss = -advantages * weight * torch.where(batch.mask, new, 0.0)
    return Terms(loss, drift_of(difference))


def diffusion_nft(
    new: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,
    *,
    beta: float = 1.0,
    advantage_bound: float = 5.0,
) -> Terms:
    """Matching of a finished picture by two predictions, the better the picture the more by the one that is ahead of the policy that drew it.

    With v the true velocity, v_old that predicted when the picture was drawn, v_plus = (1 - beta) v_old + beta v_new, v_minus = (1 + beta) v_old - beta
    v_new and r = (1 + clip(A, -a, a) / a) / 2, a = advantage_bound: loss_t = (a / beta) w (r |v_plus - v|^2 + (1 - r) |v_minus - v|^2), less what does not depend
    on v_new, where w |v_new - v|^2 = -log p. Multiplied out that is a beta m_t - clip(A_t, -a, a) (log ratio_t + m_t) with m_t = w |v_new - v_old|^2, which is
    `batch.moved`. DiffusionNFT, Zheng et al. 2025 (https://arxiv.org/abs/2509.16117), eq. 5, with the factors of their code, which divides each square by
    its detached root as well; here it is the square. They draw with a moving average of the policy, here the policy of the step's beginning draws.
    No exp is taken of the log-ratio, so here it is not clamped: m_t is not either, and the two belong together.
    """
    assert batch.moved is not None, (
        "the model says how far predictions have moved: rollout.denoise.keep_means"
    )
    advantages = advantages_of(batch).clamp(-advantage_bound, advantage_bound)
    old = new.detach() if batch.old is None else batch.old
    difference, moved = (torch.where(batch.mask, x, 0.0) for x in (new - old, batch.moved))
    loss = advantage_bound * beta * moved - advantages * (difference + moved)
    return Terms(loss, drift_of(log_ratio(new, batch)))


for _bounded in (dppo, dppo_kl, dcpo, aspo):
    _bounded.ranges = {"ratio_limit": Range(1, without_low=True)}  # type: ignore[attr-defined]
for _alone in (dppo, dppo_kl, dcpo, aspo, dro, diffusion_nft):
    _alone.entrywise = True  # type: ignore[union-attr]
topr.ranges = {"weight_limit": POSITIVE}  # type: ignore[attr-defined]
dro.ranges = {"beta": POSITIVE}  # type: ignore[attr-defined]
diffusion_nft.ranges = {"beta": POSITIVE, "advantage_bound": POSITIVE}  # type: ignore[attr-defined]
diffusion_nft.needs_moved = True  # type: ignore[attr-defined]
vespo.ranges = dict.fromkeys(  # type: ignore[attr-defined]
    ("k_positive", "lambda_positive", "k_negative", "lambda_negative"), POSITIVE
)
for _plain in (dro, vespo, aspo, diffusion_nft):
    setattr(_plain, "needs_updates", True)  # noqa: B010  # mypy knows no attributes of functions
for _led in (dppo, dppo_kl, dcpo, topr, aspo, vespo):  # not those whose square acts on every token
    setattr(_led, "zero_without_advantage", True)  # noqa: B010
for _unclipped in (topr, dro, vespo, diffusion_nft):
    setattr(_unclipped, "unused_settings", ("clip",))  # noqa: B010

TRUST_REGIONS: Mapping[str, Callable[..., Terms]] = {
    "dppo": dppo,
    "dppo_kl": dppo_kl,
    "dcpo": dcpo,
    "topr": topr,
    "dro": dro,
    "aspo": aspo,
    "vespo": vespo,
    "diffusion_nft": diffusion_nft,
}
