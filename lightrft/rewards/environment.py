"""Rewards of conversations with an environment."""

from __future__ import annotations

from collections.abc import Sequence


def environment(step_rewards: Sequence[float]) -> float:
    """The sum of what the environment gave for each turn."""
    return float(sum(step_rewards))


def turns(step_rewards: Sequence[float]) -> float:
    """Turns of the policy in the conversation; give it a negative weight to make asking cost."""
    return float(len(step_rewards))
