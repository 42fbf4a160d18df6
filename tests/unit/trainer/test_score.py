"""Advantages of responses that are compared, by what there is of a critic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightrft.algorithms.algorithm import build
from lightrft.config import Config, layers
from lightrft.parallel.world import World
from lightrft.testing import tiny_trajectories
from lightrft.trainer.scaler import RewardScaler
from lightrft.trainer.score import Scorer
from lightrft.utils.imports import resolve


def compared(critic: Any, cost: str, *settings: str) -> tuple[dict[str, float], list[Any]]:
    """Responses with columns of a critic, as replayed ones have them, whose cost is their length; what is told of them."""
    config = layers.load(["tiny", *settings], Config)
    answers, draw = tiny_trajectories([(4, [3, 5]), (6, [2, 4])]), torch.Generator().manual_seed(0)
    for number, t in enumerate(answers):
        t.reward, t.parts = float(number % 2), {"length": float(len(t))}
        t.columns |= {name: torch.randn(len(t), generator=draw) for name in ("values", "cost_values")}
    scaler = RewardScaler(["tiny"], config.rewards, config.constraint, cost, World())
    unread: dict[str, Any] = dict.fromkeys(
        ("memory_plan", "progress", "batching", "actor", "reference", "teacher", "interrupt")
    )
    scorer = Scorer(config=config, world=World(), critic=critic, scaler=scaler, needs_old=False, **unread)
    return scorer.compare(answers, build(config.algorithm, resolve)), answers


@pytest.mark.parametrize("cost", ["", "length"])
def test_what_a_critic_has_left_behind_is_nothing_without_one(cost):
    found, answers = compared(None, cost, "--algorithm.advantage", "group_mean")
    assert found == {}
    assert not any("cost_returns" in t.columns for t in answers)


def test_a_critic_is_compared_with_reward_and_cost_under_a_constraint_alone():
    found, answers = compared(object(), "", "ppo", "--algorithm.kl-coefficient", "0")
    assert found.keys() == {"critic/explained_variance"}
    assert not any("cost_returns" in t.columns for t in answers)
    both = "critic/explained_variance", "critic/reward_explained_variance", "critic/cost_explained_variance"
    found, answers = compared(object(), "length", "ppo", "--algorithm.kl-coefficient", "0")
    assert found.keys() == set(both)
    assert all(t.columns["cost_returns"][-1] == pytest.approx(len(t)) for t in answers)
