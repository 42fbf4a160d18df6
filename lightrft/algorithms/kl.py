"""Estimators of the divergence KL(policy || reference) from one sampled token each.

With d = log policy - log reference, of a token sampled from the policy:

    k1 = d                      right on average; the noisiest, and negative for half the tokens
    k2 = d^2 / 2                a little biased, much less noise; its gradient is right on average
    k3 = exp(-d) - 1 + d        right on average, little noise, never negative; its gradient is biased

John Schulman, Approximating KL divergence, 2020 (http://joschu.net/blog/kl-approx.html); k3 is eq. 4 of GRPO
(Shao et al. 2024, https://arxiv.org/abs/2402.03300).

Which one where. In the reward only the value counts: k1 or k3. In the loss only the gradient counts, and it
flows through the first argument alone. There k1 pulls towards nothing: its gradient is that of log policy,
whose mean is 0. k1+ and k3+ are k1 and k3 with the gradient of k2, which is right on average (straight-through; verl has
them by these names).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

MAX_EXPONENT = 20.0
"""exp() is taken of at most this, so that no token yields infinity: exp(20) is 4.9e8."""


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """log policy - log reference, (T,)."""
    return policy - reference


def k2(policy: Tensor, reference: Tensor) -> Tensor:
    """Half the squared difference of the log-probs, (T,)."""
    return (policy - reference).square() / 2


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = log policy - log reference, (T,).

    -d is clamped at MAX_EXPONENT and has no gradient beyond. It is not clamped below: a policy that left the
    reference far behind (large d) still feels the pull back, a gradient of 1.
    """
    behind = (reference - policy).clamp(max=MAX_EXPONENT)
    return behind.expm1() - behind


def k1_straight_through(policy: Tensor, reference: Tensor) -> Tensor:
    """k1 with the gradient of k2, (T,)."""
    return _with_gradient_of_k2(k1(policy, reference), policy, reference)


def k3_straight_through(policy: Tensor, reference: Tensor) -> Tensor:
    """k3 with the gradient of k2, (T,)."""
    return _with_gradient_of_k2(k3(policy, reference), policy, reference)


def _with_gradient_of_k2(value: Tensor, policy: Tensor, reference: Tensor) -> Tensor:
    gradient = k2(policy, reference)
    return value.detach() + (gradient - gradient.detach())


def adaptive_kl(coefficient: float, divergence: float, target: float, gain: float) -> float:
    """The coefficient of the next step: larger where the policy is further from the reference than the target, else smaller.

    coefficient * (1 + gain * clip(divergence / target - 1, -0.2, 0.2)). Ziegler et al. 2019
    (https://arxiv.org/abs/1909.08593), section 2.2, with gain 0.1; `divergence` there is of whole responses, here per token.
    Unchanged where the divergence is not finite.
    """
    if not math.isfinite(divergence):
        return coefficient
    return coefficient * (1 + gain * min(0.2, max(-0.2, divergence / target - 1)))


Divergence = Callable[[Tensor, Tensor], Tensor]
"""Log-probs (T,) of the policy and of the reference -> divergence per token (T,)."""

KL: dict[str, Divergence] = {
    "k1": k1,
    "k2": k2,
    "k3": k3,
    "k1+": k1_straight_through,
    "k3+": k3_straight_through,
}
