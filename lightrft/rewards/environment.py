"""The reward that an environment gives."""

from __future__ import annotations

from collections.abc import Sequence


def environment(step_rewards: Sequence[float]) -> float:
    """The sum of what the environment gave for each turn."""
    return float(sum(step_rewards))
