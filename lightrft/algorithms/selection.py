"""Which groups of answers to learn from. Groups that are not kept are drawn again, see rollout.max_draws."""

from __future__ import annotations

from collections.abc import Callable

from lightrft.types import GroupOfTrajectories

EQUAL_WITHIN = 1e-6
"""Rewards that differ by less than this share of the largest are equal: that is float32 rounding."""


def all_groups(group: GroupOfTrajectories) -> bool:
    """True: learn from every group."""
    return True


def mixed_outcomes(group: GroupOfTrajectories) -> bool:
    """Whether the rewards of the group differ, so that comparing them says something.

    Dynamic sampling of DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476, eq. 11), stated there for
    right and wrong answers: some, but not all, are right. Here any difference beyond rounding counts.
    """
    rewards = [trajectory.reward for trajectory in group]
    return max(rewards) - min(rewards) > EQUAL_WITHIN * max(abs(reward) for reward in rewards)


Keep = Callable[[GroupOfTrajectories], bool]

KEEP: dict[str, Keep] = {"all": all_groups, "mixed_outcomes": mixed_outcomes}
