"""The scorers of reasoning-gym's own data sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightrft.utils.answers import concluded
from lightrft.utils.imports import require


def reasoning_gym(answer: str, target: Mapping[str, Any]) -> float:
    """What the data set's scorer gives the concluded answer, from 0 to 1. `target` holds the data set's name and entry."""
    gym = require("reasoning_gym", "reasoning")
    return float(gym.get_score_answer_fn(target["data_set"])(answer=concluded(answer), entry=target["entry"]))
