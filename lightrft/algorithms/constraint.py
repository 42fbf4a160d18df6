"""A reward that rises under a limit on a mean cost: the price of the cost, what is learned from, and the values of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightrft.algorithms.advantages import explained_variance
from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.losses import value_loss
from lightrft.algorithms.segments import last_of_segment
from lightrft.types import Batch, Terms


def lagrangian_reward(scores: Tensor, costs: Tensor, multiplier: float) -> Tensor:
    """(r - lambda * c) / (1 + lambda), of the shape of both: what a policy that must keep a cost low is rewarded for.

    The Lagrangian of "raise the reward, keep the mean cost below a limit", divided so that its scale does not grow with
    lambda. Ray et al. 2019, Benchmarking Safe Exploration (https://cdn.openai.com/safexp-short.pdf), there of advantages; for
    language models Dai et al. 2023 (https://arxiv.org/abs/2310.12773).
    """
    return (scores - multiplier * costs) / (1 + multiplier)


def dual_ascent(multiplier: float, cost: float, limit: float, rate: float, most: float) -> float:
    """The multiplier of the next step: lambda + rate * (cost - limit), within [0, most].

    Gradient ascent on the Lagrangian. Ray et al. and Dai et al. (see `lagrangian_reward`) climb in a transformed lambda
    (softplus, logarithm), which cannot reach 0; ours can, and then the constraint costs nothing.
    """
    return min(most, max(0.0, multiplier + rate * (cost - limit)))


def advantages_under_a_cost(
    batch: Batch,
    costs: Tensor,
    multiplier: float,
    algorithm: Algorithm,
    reduce: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Rewards, advantages and returns, each (T,), of a batch with values of the reward and of the cost (`costs`, (S,)); how good both are.

    The scores are the Lagrangian's, (r - lambda * c) / (1 + lambda), so the values to compare them with are (V_r - lambda * V_c) /
    (1 + lambda), whatever the multiplier has become since the critic learned. Generalised advantage estimation is linear in rewards and
    values: these are the (A_r - lambda * A_c) / (1 + lambda) of Safe RLHF (Dai et al. 2023, section 3.2), with the penalty on the divergence
    at its full weight. The returns of the cost are those of its own rewards and values; the returns of the reward are what is left:
    (1 + lambda) * R + lambda * R_c. `reduce` sums over ranks; every rank calls this.
    """
    assert batch.values is not None, "fill batch.values (the critic's, of the reward) before the advantages"
    assert batch.cost_values is not None, "fill batch.cost_values (the critic's) before the advantages"
    of_reward = batch.values
    batch.values = lagrangian_reward(of_reward, batch.cost_values, multiplier)
    algorithm.compute_advantages(batch, reduce)
    assert batch.returns is not None
    together = explained_variance(batch.values, batch.returns, batch.mask, reduce)
    last = last_of_segment(batch.segments, mask=batch.mask)
    alone = replace(
        batch,
        scores=costs,
        rewards=torch.where(last, costs[batch.segments], 0.0),
        values=batch.cost_values,
    )
    _, batch.cost_returns = algorithm.advantage(alone, algorithm.config)
    batch.returns = (1 + multiplier) * batch.returns + multiplier * batch.cost_returns
    batch.values = of_reward
    return {
        "critic/explained_variance": together,
        "critic/reward_explained_variance": explained_variance(
            batch.values, batch.returns, batch.mask, reduce
        ),
        "critic/cost_explained_variance": explained_variance(
            batch.cost_values, batch.cost_returns, batch.mask, reduce
        ),
    }


def values_loss(values: tuple[Tensor, ...], batch: Batch, clip: float) -> Terms:
    """The loss of a critic's values, (T,) each: `value_loss` of the reward's, and of the cost's added where it has them."""
    reward = value_loss(values[0], batch, clip)
    if len(values) == 1:
        return reward
    cost = value_loss(values[1], replace(batch, values=batch.cost_values, returns=batch.cost_returns), clip)
    held = (reward.metrics["clip_fraction"] + cost.metrics["clip_fraction"]) / 2
    found = {"value": reward.metrics["value"], "cost_value": cost.metrics["value"], "clip_fraction": held}
    return Terms(reward.loss + cost.loss, found)
