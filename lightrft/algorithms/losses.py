"""Policy losses: one number per token, to be made small. Averaging is not done here, see averaging.py.

The ratio is new probability / old probability of the token. Where batch.old is None the new log-probs are the
old ones (one update per rollout), the ratio is 1, and its gradient is that of the new log-prob.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightrft.algorithms.kl import KL, MAX_EXPONENT, k3_straight_through
from lightrft.algorithms.optimal_values import advantage_regression
from lightrft.algorithms.ratios import (
    advantages_of,
    clipped_terms,
    drift_of,
    log_ratio,
    pessimistic,
    response_mean,
)
from lightrft.algorithms.surveys import SURVEYING
from lightrft.algorithms.trust_regions import TRUST_REGIONS
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch, Terms


def clipped(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, dual_clip: float = 0.0) -> Terms:
    """Pessimistic gain of following the advantage: no gradient once the ratio has moved far enough with it.

    loss_t = -min(ratio_t * A_t, clip(ratio_t, 1 - algo.clip[0], 1 + algo.clip[1]) * A_t)

    PPO, Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), eq. 7; token by token in GRPO, Shao et al.
    2024 (https://arxiv.org/abs/2402.03300), eq. 3; with two bounds in DAPO, Yu et al. 2025
    (https://arxiv.org/abs/2503.14476), eq. 10. Beyond exp(20) or below exp(-20) the ratio is constant, see
    `log_ratio`.

    A ratio far above 1 with a negative advantage is not clipped by that and can grow without bound. With
    `dual_clip` = c > 1 the loss of such a token is at most c * |A_t|, and has no gradient there (dual clip, Ye et al.
    2020, https://arxiv.org/abs/1912.09729, eq. 5; they use c = 3). 0: not.

    clip/fraction counts the tokens whose gradient a clip stops, not all those outside the bounds.
    """
    difference = log_ratio(new, batch)
    return clipped_by(difference.exp(), difference, batch, algo, dual_clip)


def clipped_by(
    ratio: Tensor, difference: Tensor, batch: Batch, algo: AlgorithmConfig, dual_clip: float
) -> Terms:
    """The clipped loss of any ratio (T,) with its dual clip, see `clipped`, and the diagnostics of the tokens' log-ratios `difference`.

    clip/dual is the share of tokens that the dual clip stops; only where it is set. ValueError for a bound that is none.
    """
    if dual_clip != 0 and dual_clip <= 1:
        raise ValueError(
            f"algorithm.options.dual_clip={dual_clip}: a bound of the ratio, so above 1, e.g. 3; 0 leaves it out."
        )
    advantages = advantages_of(batch)
    loss, stopped = pessimistic(ratio, advantages, algo)
    if not dual_clip:
        return clipped_terms(loss, difference, stopped)
    worst = -dual_clip * advantages
    beyond = (advantages < 0) & (loss > worst)
    terms = clipped_terms(torch.where(beyond, worst, loss), difference, stopped | beyond)
    return Terms(terms.loss, {**terms.metrics, "clip/dual": beyond.to(loss.dtype)})


def sequence_clipped(new: Tensor, batch: Batch, algo: AlgorithmConfig, *, dual_clip: float = 0.0) -> Terms:
    """Clipped loss with one ratio for the whole response: the geometric mean of its tokens' ratios.

    s_i = exp(mean_t log ratio_t);  loss_t = -min(s_i * A_t, clip(s_i, 1 - clip[0], 1 + clip[1]) * A_t)

    GSPO, Zheng et al. 2025 (https://arxiv.org/abs/2507.18071), eqs. 5 and 7. Averaged by sequence it is theirs. The ratio of an
    response moves far less than that of a token: bounds are of the order of 3e-4. `dual_clip` bounds s_i as it does a token's ratio in `clipped`.
    """
    difference = log_ratio(new, batch)
    ratio = response_mean(difference, batch).exp()
    return clipped_by(ratio, difference, batch, algo, dual_clip)


def sequence_clipped_token(
    new: Tensor, batch: Batch, algo: AlgorithmConfig, *, dual_clip: float = 0.0
) -> Terms:
    """The token form of sequence_clipped: the ratio of the response decides, each token follows its own advantage.

    s_t = sg(s_i) * p_t / sg(p_t);  loss_t = -min(s_t * A_t, clip(s_t, 1 - clip[0], 1 + clip[1]) * A_t), where sg has
    no gradient. GSPO-token, Zheng et al. 2025 (https://arxiv.org/abs/2507.18071), eqs. 13 and 14. Where all tokens of a response
    have one advantage and responses are averaged by sequence, its gradient is that of sequence_clipped.
    """
    difference = log_ratio(new, batch)
    ratio = (response_mean(difference, batch).detach() + difference - difference.detach()).exp()
    return clipped_by(ratio, difference, batch, algo, dual_clip)


def geometric(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Terms:
    """The objective of a response is the geometric mean of its tokens' ratios, each clipped first: outliers weigh little.

    d_t = the smaller of log ratio_t and clip(log ratio_t, -clip[0], clip[1]) if A_t > 0, the larger if A_t < 0;
    loss_t = -A_t * exp(mean_t d_t)

    GMPO, Zhao et al. 2025 (https://arxiv.org/abs/2507.20673), eq. 4. Here `clip` bounds the *logarithm* of the ratio; they use
    0.4 on both sides. Averaged by sequence it is theirs.
    """
    advantages = advantages_of(batch)
    difference = log_ratio(new, batch)
    bounded = difference.clamp(-algo.clip[0], algo.clip[1])
    sign = advantages.sign()
    worse = torch.minimum(sign * difference, sign * bounded) * sign
    loss = -advantages * response_mean(worse, batch).exp()
    stopped = (difference - bounded) * advantages > 0
    return clipped_terms(loss, difference, stopped)


def cispo(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Terms:
    """Policy gradient with clipped importance weights: no token loses its gradient, whatever its ratio.

    loss_t = -sg(clip(ratio_t, 1 - clip[0], 1 + clip[1])) * A_t * log p_t, where sg has no gradient. CISPO, MiniMax-M1
    2025 (https://arxiv.org/abs/2506.13585), eqs. 4 and 5. They set no lower bound (clip[0] = 1) and leave the upper one open.

    clip/fraction counts the tokens whose weight was clipped.
    """
    difference = log_ratio(new, batch)
    ratio = difference.detach().exp()
    weight = ratio.clamp(1 - algo.clip[0], 1 + algo.clip[1])
    loss = -weight * advantages_of(batch) * torch.where(batch.mask, new, 0.0)
    return clipped_terms(loss, difference, weight != ratio)


def sapo(
    new: Tensor, batch: Batch, algo: AlgorithmConfig, *, tau_positive: float = 1.0, tau_negative: float = 1.05
) -> Terms:
    """A soft gate instead of a clip: the further the ratio has moved, the less gradient is left.

    loss_t = -A_t * sigmoid(tau * (ratio_t - 1)) * 4 / tau, with tau_positive where A_t > 0, else tau_negative. At
    ratio 1 the gradient is the plain policy gradient. SAPO, Gao et al. 2025 (https://arxiv.org/abs/2511.20347), eqs. 5 and 6.
    """
    if min(tau_positive, tau_negative) <= 0:
        raise ValueError(
            f"algorithm.options: tau_positive={tau_positive}, tau_negative={tau_negative} must be above 0."
        )
    advantages = advantages_of(batch)
    difference = log_ratio(new, batch)
    tau = torch.full_like(advantages, tau_negative).masked_fill(advantages > 0, tau_positive)
    gate = torch.sigmoid(tau * (difference.exp() - 1)) * 4 / tau
    return Terms(-advantages * gate, drift_of(difference))


def cpgd(
    new: Tensor, batch: Batch, algo: AlgorithmConfig, *, drift: float = 0.01, drift_clip: float = 0.2
) -> Terms:
    """Policy gradient on a clipped log-ratio, and a pull back to the policy that sampled.

    loss_t = -min(d_t * A_t, clip(d_t, log(1 - clip[0]), log(1 + clip[1])) * A_t) + drift * D(d_t),  d_t = log ratio_t

    D estimates KL(old || new) from the sampled token: k3, exp(d) - 1 - d, whose gradient exp(d) - 1 is clipped at
    `drift_clip` (beyond it D goes on as a straight line, so that an outlier cannot throw the policy back). CPGD,
    Liu et al. 2025 (https://arxiv.org/abs/2505.12504). The gradient of the first term holds no ratio, so it cannot blow up.
    """
    if drift < 0 or drift_clip <= 0:
        raise ValueError(
            f"algorithm.options: drift={drift} must be at least 0 and drift_clip={drift_clip} above 0."
        )
    advantages = advantages_of(batch)
    difference = log_ratio(new, batch)
    low = math.log1p(-algo.clip[0]) if algo.clip[0] < 1 else -MAX_EXPONENT
    bounded = difference.clamp(low, math.log1p(algo.clip[1]))
    loss = -torch.minimum(difference * advantages, bounded * advantages)
    inside = difference.clamp(max=math.log1p(drift_clip))
    pull = inside.expm1() - inside + drift_clip * (difference - inside)
    stopped = (difference - bounded) * advantages > 0
    return clipped_terms(loss + drift * pull, difference, stopped)


def policy_gradient(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Terms:
    """loss_t = -A_t * log p_t: its gradient is the plain policy gradient.

    Williams 1992 (https://doi.org/10.1007/BF00992696). Right for responses sampled from the weights being
    trained: use it with update.epochs=1 and update.num_minibatches=1.
    """
    loss = -advantages_of(batch) * torch.where(batch.mask, new, 0.0)
    return Terms(loss, drift_of(log_ratio(new, batch)))


def negative_log_likelihood(new: Tensor, batch: Batch, entropy: Tensor) -> Terms:
    """loss_t = -log p_t, 0 outside the mask: to say what was said (supervised fine-tuning)."""
    loss = torch.where(batch.mask, -new, 0.0)
    return Terms(loss, {"nll": loss.detach(), "entropy": entropy.detach()})


def value_loss(values: Tensor, batch: Batch, clip: float) -> Terms:
    """Half the squared distance of the critic's values from the returns; the larger of two, so clipping only holds back.

    loss_t = max((v_t - R_t)^2, (clip(v_t, old_t - clip, old_t + clip) - R_t)^2) / 2, old_t the value at sampling
    (batch.values). Without the clip if that is 0. As in the code of PPO's authors (openai/baselines, ppo2); the paper has none.
    """
    assert batch.values is not None, "fill batch.values (the critic's, at sampling) before its loss"
    assert batch.returns is not None, "fill batch.returns before the loss of the critic"
    values, old, returns = (torch.where(batch.mask, x, 0.0) for x in (values, batch.values, batch.returns))
    loss = (values - returns).square()
    held = torch.zeros_like(batch.mask)
    if clip:
        bounded = (old + (values - old).clamp(-clip, clip) - returns).square()
        held = bounded > loss
        loss = torch.maximum(loss, bounded)
    return Terms(loss / 2, {"value": values.detach(), "clip_fraction": held.to(loss.dtype)})


def add_regularisers(
    terms: Terms, new: Tensor, batch: Batch, algo: AlgorithmConfig, *, entropy: Tensor | None
) -> Terms:
    """Any policy loss plus the pull towards reference (kl_in="loss") and teacher (teacher_in="loss"), and entropy.

    loss_t + kl_coefficient * KL_t + teacher_coefficient * k3+_t - entropy_coefficient * H_t; 0 outside the mask. `entropy` (T,)
    is that of the whole next-token distribution, with its gradient. Adds the metrics kl, teacher_kl and entropy where they
    can be known, whatever the coefficients.
    """
    assert batch.ref is not None or algo.kl_coefficient == 0, "a KL penalty needs the reference log-probs"
    assert entropy is not None or algo.entropy_coefficient == 0, "an entropy bonus needs the entropy"
    loss, metrics = terms.loss, dict(terms.metrics)
    if batch.ref is not None:
        divergence = _divergence(new, batch, algo)
        metrics["kl"] = divergence.detach()
        if algo.kl_in == "loss" and algo.kl_coefficient != 0:
            loss = loss + algo.kl_coefficient * divergence
    if batch.teacher is not None:
        gap = k3_straight_through(
            torch.where(batch.mask, new, 0.0), torch.where(batch.mask, batch.teacher, 0.0)
        )
        metrics["teacher_kl"] = gap.detach()
        if algo.teacher_in == "loss":
            loss = loss + algo.teacher_coefficient * gap
    if entropy is not None:
        entropy = torch.where(batch.mask, entropy, 0.0)
        metrics["entropy"] = entropy.detach()
        if algo.entropy_coefficient != 0:
            loss = loss - algo.entropy_coefficient * entropy
    return Terms(torch.where(batch.mask, loss, 0.0), metrics, terms.ratios)


def _divergence(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Tensor:
    """From the reference, (T,): in closed form where the model has said it, else estimated."""
    assert batch.ref is not None
    if batch.divergence is not None:
        return torch.where(batch.mask, batch.divergence, 0.0)
    return KL[algo.kl](torch.where(batch.mask, new, 0.0), torch.where(batch.mask, batch.ref, 0.0))


policy_gradient.on_policy_only = True  # type: ignore[attr-defined]
for _alone in (clipped, policy_gradient, cispo, sapo, cpgd):
    _alone.entrywise = True  # type: ignore[attr-defined]
for _led in (clipped, sequence_clipped, sequence_clipped_token, geometric, cispo, sapo, policy_gradient):
    setattr(_led, "zero_without_advantage", True)  # noqa: B010  # mypy knows no attributes of functions
for _unclipped in (policy_gradient, sapo):
    setattr(_unclipped, "unused_settings", ("clip",))  # noqa: B010  # mypy knows no attributes of functions


PolicyLoss = Callable[[Tensor, Batch, AlgorithmConfig], Terms]
"""New log-probs (T,), batch, settings -> loss and diagnostics per token."""

LOSSES: dict[str, PolicyLoss] = {
    "clipped": clipped,
    "policy_gradient": policy_gradient,
    "sequence_clipped": sequence_clipped,
    "sequence_clipped_token": sequence_clipped_token,
    "geometric": geometric,
    "cispo": cispo,
    "sapo": sapo,
    "cpgd": cpgd,
    "advantage_regression": advantage_regression,
    **TRUST_REGIONS,
    **SURVEYING,
}
