"""Policy losses: one number per token, to be made small. Averaging is not done here, see averaging.py.

The ratio is new probability / old probability of the token. Where batch.old is None the new log-probs are the
old ones (one update per rollout), the ratio is 1, and its gradient is that of the new log-prob.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightrft.algorithms.kl import KL, MAX_EXPONENT, k3
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch, Terms


def clipped(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Terms:
    """Pessimistic gain of following the advantage: no gradient once the ratio has moved far enough with it.

    loss_t = -min(ratio_t * A_t, clip(ratio_t, 1 - algo.clip[0], 1 + algo.clip[1]) * A_t)

    PPO, Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), eq. 7; token by token in GRPO, Shao et al.
    2024 (https://arxiv.org/abs/2402.03300), eq. 3; with two bounds in DAPO, Yu et al. 2025
    (https://arxiv.org/abs/2503.14476), eq. 10. Not clipped: a ratio above 1 + clip[1] with a negative
    advantage (that takes dual clip). Beyond exp(20) or below exp(-20) the ratio is constant, see `log_ratio`.

    clip_share counts the tokens whose gradient the clip stops, not all those outside the bounds.
    """
    advantages = _advantages(batch)
    difference = log_ratio(new, batch)
    ratio = difference.exp()
    bounded = ratio.clamp(1 - algo.clip[0], 1 + algo.clip[1])
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    stopped = (ratio - bounded) * advantages > 0
    return Terms(loss, {**_drift(difference), "clip_share": stopped.to(loss.dtype)})


def policy_gradient(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Terms:
    """loss_t = -A_t * log p_t: its gradient is the plain policy gradient.

    Williams 1992 (https://doi.org/10.1007/BF00992696). Right for answers drawn from the weights being
    trained: use it with update.epochs=1 and update.minibatches=1.
    """
    loss = -_advantages(batch) * torch.where(batch.mask, new, 0.0)
    return Terms(loss, _drift(log_ratio(new, batch)))


def regularise(
    terms: Terms, new: Tensor, batch: Batch, algo: AlgorithmConfig, *, entropy: Tensor | None
) -> Terms:
    """Any policy loss plus the pull towards the reference (kl_in="loss") and entropy; 0 outside the mask.

    loss_t + kl_coefficient * KL_t - entropy_coefficient * H_t. `entropy` (T,) is that of the whole next-token
    distribution, with its gradient. Adds the metrics kl and entropy where they can be known, whatever the
    coefficients.
    """
    assert batch.ref is not None or algo.kl_coefficient == 0, "a KL penalty needs the reference log-probs"
    assert entropy is not None or algo.entropy_coefficient == 0, "an entropy bonus needs the entropy"
    loss, metrics = terms.loss, dict(terms.metrics)
    if batch.ref is not None:
        divergence = KL[algo.kl](torch.where(batch.mask, new, 0.0), torch.where(batch.mask, batch.ref, 0.0))
        metrics["kl"] = divergence.detach()
        if algo.kl_in == "loss" and algo.kl_coefficient != 0:
            loss = loss + algo.kl_coefficient * divergence
    if entropy is not None:
        entropy = torch.where(batch.mask, entropy, 0.0)
        metrics["entropy"] = entropy.detach()
        if algo.entropy_coefficient != 0:
            loss = loss - algo.entropy_coefficient * entropy
    return Terms(torch.where(batch.mask, loss, 0.0), metrics)


def log_ratio(new: Tensor, batch: Batch) -> Tensor:
    """log(new / old), (T,), cut to [-20, 20] so that its exp cannot overflow; 0 outside the mask.

    Where it is cut it has no gradient. verl cuts at the same place.
    """
    old = new.detach() if batch.old is None else batch.old
    return torch.where(batch.mask, new - old, 0.0).clamp(-MAX_EXPONENT, MAX_EXPONENT)


def _advantages(batch: Batch) -> Tensor:
    assert batch.advantages is not None, "fill batch.advantages before the loss"
    return torch.where(batch.mask, batch.advantages, 0.0)


def _drift(difference: Tensor) -> dict[str, Tensor]:
    """How far the policy has moved since sampling: the ratio, and the k3 estimate of KL(old || new)."""
    difference = difference.detach()
    return {"ratio/mean": difference.exp(), "kl_old": k3(-difference, torch.zeros_like(difference))}


PolicyLoss = Callable[[Tensor, Batch, AlgorithmConfig], Terms]
"""New log-probs (T,), batch, settings -> loss and diagnostics per token."""

LOSSES: dict[str, PolicyLoss] = {"clipped": clipped, "policy_gradient": policy_gradient}
