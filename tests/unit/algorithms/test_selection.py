import pytest

from lightrft.algorithms.selection import GROUP_FILTERS, mixed_outcomes
from lightrft.testing import tiny_trajectories


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
