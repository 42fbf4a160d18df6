import pytest
import torch

from lightrft.algorithms.advantages import group_norm_by_part
from lightrft.algorithms.algorithm import build
from lightrft.algorithms.selection import GROUP_FILTERS, mixed_outcomes
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch, tiny_trajectories
from lightrft.utils.imports import resolve


def group(rewards):
    trajectories = tiny_trajectories([(2, [1] * len(rewards))])
    for trajectory, reward in zip(trajectories, rewards, strict=True):
        trajectory.reward = reward
    return trajectories


def test_all_keeps_a_group_that_teaches_nothing():
    assert GROUP_FILTERS["all"](group([1.0, 1.0]))


@pytest.mark.parametrize("rewards", [[1.0, 0.0, 0.0], [0.5, 0.51], [-1.0, 1.0], [1e-9, 0.0]])
def test_mixed_outcomes_keeps_a_group_whose_rewards_differ(rewards):
    assert mixed_outcomes(group(rewards))


@pytest.mark.parametrize("rewards", [[0.0] * 4, [1.0] * 4, [0.1] * 8, [0.1 + 0.2, 0.3], [-2.0, -2.0], [1.0]])
def test_mixed_outcomes_drops_a_group_whose_rewards_are_equal_up_to_rounding(rewards):
    assert not mixed_outcomes(group(rewards))


PARTS = [
    # parts a and b of two responses, their weights, what the sums say, and the advantages of group_norm_by_part
    ([(0, 1), (2, 0)], (1, 2), False, [0.5**0.5, -(0.5**0.5)]),  # sums 2 and 2
    ([(0, 1), (3, 0)], (1, 1), True, [0.0, 0.0]),  # sums 1 and 3
    ([(1, 5), (1, 5)], (1, 1), False, [0.0, 0.0]),
    ([(1, 5), (1, 7)], (1, 0), False, [0.0, 0.0]),  # b is only looked at
    ([(1, 0.1), (0, 0.3)], (1, -1), True, [2**0.5, -(2**0.5)]),
]


@pytest.mark.parametrize(("parts", "weights", "by_sum", "advantages"), PARTS)
def test_mixed_outcomes_looks_at_what_the_advantage_compares(parts, weights, by_sum, advantages):
    found = group([a * weights[0] + b * weights[1] for a, b in parts])
    for t, (a, b) in zip(found, parts, strict=True):
        t.parts = {"a": float(a), "b": float(b)}
    batch = make_batch([1, 1], scores=[1.0, 1.0], rewards=[1.0, 1.0])
    batch.grades, batch.part_weights = torch.tensor(parts), torch.tensor([weights] * 2).double()
    assert group_norm_by_part(batch, AlgorithmConfig())[0].tolist() == pytest.approx(advantages, abs=1e-6)
    named = dict(zip("ab", map(float, weights), strict=True))
    for advantage, right in (("group_norm", by_sum), ("group_norm_by_part", any(advantages))):
        row = AlgorithmConfig(advantage=advantage, group_filter="mixed_outcomes")
        assert build(row, resolve).learns_from(found, named) == right


@pytest.mark.parametrize(
    ("turns", "by_sum", "by_turn"),
    [
        ([[1, 0], [0, 1]], False, True),  # equal sums of turns that differ
        ([[1, 0], [1, 0]], False, False),
        ([[1], [1, 0]], False, False),  # the second has a turn that none can be compared with
        ([[0.1 + 0.2], [0.3]], False, False),
        ([[1, 0], [1, 1]], True, True),
    ],
)
def test_mixed_outcomes_looks_at_turns_where_the_advantage_does(turns, by_sum, by_turn):
    found = group([float(sum(rewards)) for rewards in turns])
    for t, rewards in zip(found, turns, strict=True):
        t.step_rewards = [float(reward) for reward in rewards]
    for advantage, right in (("group_norm", by_sum), ("group_norm_by_turn", by_turn)):
        row = AlgorithmConfig(advantage=advantage, group_filter="mixed_outcomes")
        assert build(row, resolve).learns_from(found, {"environment": 1.0}) == right
