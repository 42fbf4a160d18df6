"""A limit on a mean cost: its price, and the advantages of a policy whose critic knows both, against a slow loop over Safe RLHF's formulas."""

from __future__ import annotations

import pytest
import torch

from lightrft.algorithms.algorithm import build
from lightrft.algorithms.constraint import (
    advantages_under_a_cost,
    dual_ascent,
    lagrangian_reward,
    values_loss,
)
from lightrft.algorithms.losses import value_loss
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch
from lightrft.utils.imports import resolve


def test_a_cost_is_weighed_against_the_reward():
    scores, costs = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0])
    assert lagrangian_reward(scores, costs, 0.0).tolist() == [1.0, 1.0]
    assert lagrangian_reward(scores, costs, 3.0).tolist() == [0.25, -1.25]


def test_the_multiplier_climbs_above_the_limit_and_sinks_below():
    assert dual_ascent(1.0, cost=0.5, limit=0.2, rate=2.0, most=10.0) == pytest.approx(1.6)
    assert dual_ascent(1.0, cost=0.1, limit=0.2, rate=2.0, most=10.0) == pytest.approx(0.8)
    assert dual_ascent(0.1, cost=0.0, limit=0.2, rate=2.0, most=10.0) == 0.0
    assert dual_ascent(9.9, cost=9.0, limit=0.2, rate=2.0, most=10.0) == 10.0


LENGTHS = [5, 1, 7, 3]
LAMBDA, GAMMA = 0.9, 0.97


def batch_of(seed: int) -> tuple[Batch, torch.Tensor]:
    """Responses some tokens of which the policy did not choose, in float64; and their costs."""
    draw = torch.Generator().manual_seed(seed)

    def noise(size: int) -> torch.Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    total = sum(LENGTHS)
    mask = torch.rand(total, generator=draw) < 0.8
    mask[[0, 5, 6, 13]] = True  # a token of each
    batch = Batch(
        segments=torch.repeat_interleave(torch.arange(4), torch.tensor(LENGTHS)),
        groups=torch.arange(4),
        mask=mask,
        scores=noise(4),
        weights=torch.zeros(total),
        behavior=torch.zeros(total),
        old=noise(total),
        ref=noise(total),
        values=noise(total),
        cost_values=noise(total),
    )
    return batch, noise(4)


def gae(rewards: list[float], values: list[float]) -> list[float]:
    """Of one response's chosen tokens: A_t = d_t + gamma lambda A_{t+1}, d_t = r_t + gamma V_{t+1} - V_t."""
    advantages, following, later = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        later = rewards[t] + GAMMA * following - values[t] + GAMMA * LAMBDA * later
        following = values[t]
        advantages[t] = later
    return advantages


@pytest.mark.parametrize("multiplier", [0.0, 0.7, 40.0])
@pytest.mark.parametrize(("penalty", "clip"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.5)])
def test_advantages_of_two_values_are_those_of_safe_rlhf(multiplier, penalty, clip):
    """(A_r - lambda A_c) / (1 + lambda), each with its own values; a penalty is in both; returns are advantages plus values."""
    batch, costs = batch_of(3)
    settings = {"kl": "k1", "kl_in": "reward", "kl_coefficient": penalty, "reward_clip": clip}
    row = AlgorithmConfig(advantage="gae", gamma=GAMMA, gae_lambda=LAMBDA, **settings)
    of_reward, of_cost, rewards = batch.values, batch.cost_values, batch.scores
    batch.scores = lagrangian_reward(rewards, costs, multiplier)
    advantages_under_a_cost(batch, rewards, costs, multiplier, build(row, resolve), lambda x: x)
    assert batch.values is of_reward

    def clipped(score: torch.Tensor) -> float:
        return max(-clip, min(clip, float(score))) if clip else float(score)

    for s in range(4):
        at = [i for i in range(sum(LENGTHS)) if batch.segments[i] == s and batch.mask[i]]
        last = [i == at[-1] for i in at]
        paid = [penalty * float(batch.old[i] - batch.ref[i]) for i in at]
        plain = [clipped(rewards[s]) * end - x for end, x in zip(last, paid, strict=True)]
        dear = [clipped(costs[s]) * end + x for end, x in zip(last, paid, strict=True)]
        a_r, a_c = gae(plain, of_reward[at].tolist()), gae(dear, of_cost[at].tolist())
        expected = [(r - multiplier * c) / (1 + multiplier) for r, c in zip(a_r, a_c, strict=True)]
        assert batch.advantages[at].tolist() == pytest.approx(expected, abs=1e-9)
        assert batch.returns[at].tolist() == pytest.approx(
            (torch.tensor(a_r) + of_reward[at]).tolist(), abs=1e-6
        )
        assert batch.cost_returns[at].tolist() == pytest.approx(
            (torch.tensor(a_c) + of_cost[at]).tolist(), abs=1e-6
        )
    for column in (batch.advantages, batch.returns, batch.cost_returns):
        assert not column[~batch.mask].any()


def test_without_a_clip_they_are_those_of_the_lagrangian_and_the_mixed_values():
    """The penalty on the divergence has its full weight, as where rewards are combined first."""
    row = AlgorithmConfig(
        advantage="gae",
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        kl="k1",
        kl_in="reward",
        kl_coefficient=0.3,
        whiten=True,
    )
    algorithm, multiplier = build(row, resolve), 3.0
    batch, costs = batch_of(4)
    advantages_under_a_cost(batch, batch.scores, costs, multiplier, algorithm, lambda x: x)
    mixed, _ = batch_of(4)
    mixed.scores = lagrangian_reward(mixed.scores, costs, multiplier)
    mixed.values = lagrangian_reward(mixed.values, mixed.cost_values, multiplier)
    algorithm.compute_advantages(mixed, lambda x: x)
    assert batch.advantages.tolist() == pytest.approx(mixed.advantages.tolist(), abs=1e-9)
    assert batch.rewards.tolist() == pytest.approx(mixed.rewards.tolist(), abs=1e-9)


@pytest.mark.parametrize("multiplier", [0.0, 9.0])
def test_what_the_critic_learns_does_not_move_with_the_price(multiplier):
    row = AlgorithmConfig(advantage="gae", kl="k1", kl_in="reward", kl_coefficient=0.1, reward_clip=0.5)
    batch, costs = batch_of(6)
    advantages_under_a_cost(batch, batch.scores, costs, multiplier, build(row, resolve), lambda x: x)
    free, _ = batch_of(6)
    advantages_under_a_cost(free, free.scores, costs, 1.0, build(row, resolve), lambda x: x)
    assert torch.equal(batch.returns, free.returns)
    assert torch.equal(batch.cost_returns, free.cost_returns)


def test_how_good_the_values_are_is_told_of_each_and_of_their_mixture():
    batch, costs = batch_of(5)
    row = AlgorithmConfig(advantage="gae", gae_lambda=1.0, kl_coefficient=0.0)
    batch.cost_values = costs[batch.segments]  # perfect
    found = advantages_under_a_cost(batch, batch.scores, costs, 0.0, build(row, resolve), lambda x: x)
    assert found["critic/cost_explained_variance"] == pytest.approx(1.0)
    assert found["critic/reward_explained_variance"] == pytest.approx(found["critic/explained_variance"])
    assert found["critic/reward_explained_variance"] < 0.9


def test_the_loss_of_two_values_is_the_sum_of_both():
    batch, _ = batch_of(7)
    batch.returns, batch.cost_returns = batch.values + 1.0, batch.cost_values - 2.0
    new = (batch.values + 0.1, batch.cost_values + 0.5)
    terms = values_loss(new, batch, clip=0.2)
    mask = batch.mask
    assert terms.loss[mask].tolist() == pytest.approx([0.9**2 / 2 + 2.5**2 / 2] * int(mask.sum()))
    assert not terms.loss[~mask].any()
    assert torch.equal(terms.metrics["cost_value"][mask], new[1][mask])
    alone = values_loss(new[:1], batch, clip=0.2)
    assert torch.equal(alone.loss, value_loss(new[0], batch, clip=0.2).loss)
