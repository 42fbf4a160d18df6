"""Answers that say how sure they are, by a proper scoring rule: the expected reward is highest where the stated confidence is the chance
of being right, and saying "I do not know" with a confidence of 0 is better than a wrong answer that is sure of itself."""

from __future__ import annotations

import math
import re
from typing import Any

from lightrft.rewards.math import math as right

STATED = re.compile(
    r"confidence(?: is)?[^\w.-]{0,8}(\d{1,3}(?:\.\d{1,6})?|\.\d{1,6})\s{0,3}(%|percent)?", re.IGNORECASE
)
"""What states a confidence: "Confidence: 70%", "**Confidence:** 0.7"."""


def stated_confidence(answer: str) -> float:
    """The last confidence that an answer states, in 0 to 1; NaN if there is none, or none of these."""
    found = list(STATED.finditer(answer))
    if not found:
        return math.nan
    number, percent = float(found[-1][1]), bool(found[-1][2])
    value = number / 100 if percent or number > 1 else number
    return value if value <= 1 else math.nan


def confident_math(answer: str, target: Any) -> float:
    """Right - (confidence - right)^2, with right 1 or 0 by the reward `math`: 1 for a right answer that is sure, 0 for a wrong one that
    is not, -1 for a wrong one that is sure. An answer that states no confidence gets -1 too.

    Correctness with the Brier score as a penalty (Damani et al. 2025, https://arxiv.org/abs/2507.16806, equation 3).
    """
    confidence = stated_confidence(answer)
    if math.isnan(confidence):
        return -1.0
    said = answer[: list(STATED.finditer(answer))[-1].start()]
    is_right = right(said, target)
    return is_right - (confidence - is_right) ** 2
