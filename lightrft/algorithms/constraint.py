"""A reward that rises under a limit on a mean cost: the price of the cost, what is learned from, and the values of both."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightrft.algorithms.advantages import explained_variance
from lightrft.algorithms.algorithm import Algorithm, Reduce
from lightrft.algorithms.losses import value_loss
from lightrft.algorithms.shaping import token_rewards
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
    rewards: Tensor,
    costs: Tensor,
    multiplier: float,
    algorithm: Algorithm,
    reduce: Reduce,
) -> dict[str, float]:
    """Rewards, advantages and returns, each (T,), of a batch with values of the reward and of the cost; how well those had known them.

    `rewards` and `costs`, (S,), are what responses are worth without each other. The estimator sees each with its own values, and
    A = (A_r - lambda * A_c) / (1 + lambda), as in Safe RLHF (Dai et al. 2023, section 3.2). A penalty on the divergence from the reference
    (algorithm.kl_in=reward) is taken off the rewards and added to the costs, as there, so that it has its full weight in A and what the critic
    learns does not move with lambda. `reduce` sums over ranks; every rank calls this.
    """
    assert batch.values is not None, "fill batch.values (the critic's, of the reward) before the advantages"
    assert batch.cost_values is not None, "fill batch.cost_values (the critic's) before the advantages"
    row = algorithm.config
    token_costs = -token_rewards(replace(batch, scores=-costs), row)
    of_reward = replace(batch, scores=rewards, rewards=token_rewards(replace(batch, scores=rewards), row))
    of_cost = replace(batch, scores=costs, rewards=token_costs, values=batch.cost_values)
    assert of_reward.rewards is not None
    a_reward, batch.returns = algorithm.advantage(of_reward, row)
    a_cost, batch.cost_returns = algorithm.advantage(of_cost, row)
    batch.rewards = lagrangian_reward(of_reward.rewards, token_costs, multiplier)
    algorithm.finish_advantages(batch, lagrangian_reward(a_reward, a_cost, multiplier), reduce)

    def explained(values: Tensor, returns: Tensor) -> float:
        return explained_variance(values, returns, batch.mask, reduce)

    return {
        "critic/explained_variance": explained(
            lagrangian_reward(batch.values, batch.cost_values, multiplier),
            lagrangian_reward(batch.returns, batch.cost_returns, multiplier),
        ),
        "critic/reward_explained_variance": explained(batch.values, batch.returns),
        "critic/cost_explained_variance": explained(batch.cost_values, batch.cost_returns),
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
