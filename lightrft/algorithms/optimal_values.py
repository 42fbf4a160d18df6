"""A*-PO, policy optimisation by regression on optimal advantages. Brantley et al. 2025 (https://arxiv.org/abs/2505.20686).

The best policy that stays near the reference has beta * log(policy / reference) = r - V*, for the value V* of each prompt. That needs samples
of the reference alone: it is measured once (trainer/optimal_values.py), and the log-ratio of what the policy samples is fitted to the difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightrft.algorithms.columns import returns_of, spread
from lightrft.algorithms.ratios import advantages_of, drift_of, log_ratio, response_mean, response_sum
from lightrft.algorithms.shaping import answer_rewards
from lightrft.config import AlgorithmConfig
from lightrft.config.ranges import Range
from lightrft.types import Batch, Terms


def value_of(rewards: Sequence[float], beta: float) -> float:
    """The optimal value of a prompt, from the rewards of responses that the reference gave to it: beta * log of the mean of exp(r / beta).

    The paper's estimate in its first stage, with beta its beta_1: between the mean of the rewards (large) and the largest of them (small).
    NaN without rewards.
    """
    if not rewards:
        return math.nan
    most = max(rewards)
    if most == min(rewards):
        return most
    return most + beta * math.log(math.fsum(math.exp((r - most) / beta) for r in rewards) / len(rewards))


def optimal_value(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward minus the optimal value of the prompt, which is measured once with the policy that the run begins with.

    A_i = r_i - V*(x), the same for every token of response i; V*(x) = value_beta * log of the mean of exp(r / value_beta) over the rewards of
    value_samples responses of the reference. Brantley et al. 2025 (https://arxiv.org/abs/2505.20686), algorithm 1. Needs no group.
    """
    assert batch.baselines is not None, "algorithm.advantage=optimal_value needs the values of prompts"
    worth = answer_rewards(batch, algo).double() - batch.baselines.double()
    return spread(worth, batch), returns_of(batch)


def advantage_regression(
    new: Tensor,
    batch: Batch,
    algo: AlgorithmConfig,  # noqa: ARG001  # as every loss
    *,
    beta: float = 0.001,
) -> Terms:
    """Squared distance of the response's log-ratio to the reference, times beta, from its advantage.

    loss_t = (beta * sum_u log(p_u / ref_u) - A_i)^2 for every token of response i, the sum over its chosen tokens. Brantley et al. 2025
    (https://arxiv.org/abs/2505.20686), algorithm 1, with beta their beta_2; averaged by sequence it is theirs. No ratio to the policy that
    sampled enters: responses are those of the present policy.
    """
    assert batch.ref is not None, "algorithm.loss=advantage_regression needs the reference log-probs"
    gap = response_sum(torch.where(batch.mask, new - batch.ref, 0.0), batch)
    wanted = response_mean(advantages_of(batch), batch)
    loss = torch.where(batch.mask, (beta * gap - wanted).square(), 0.0)
    return Terms(loss, drift_of(log_ratio(new, batch)))


optimal_value.needs_baseline = optimal_value.needs_optimal_values = True  # type: ignore[attr-defined]
optimal_value.plain_rewards = True  # type: ignore[attr-defined]
optimal_value.unused_settings = ("gae_lambda", "gamma")  # type: ignore[attr-defined]
advantage_regression.needs_reference = advantage_regression.on_policy_only = True  # type: ignore[attr-defined]
advantage_regression.fits_optimal_values = True  # type: ignore[attr-defined]
advantage_regression.ranges = {"beta": Range(0, without_low=True)}  # type: ignore[attr-defined]
advantage_regression.unused_settings = ("clip",)  # type: ignore[attr-defined]
