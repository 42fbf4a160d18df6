"""Rewards for mathematics: find what an answer concludes, and whether it equals the target.

Equal text and equal plain numbers are decided here; the rest by math-verify (https://github.com/huggingface/Math-Verify),
without its own time limits: those use signal.alarm, which works in no thread but the main one. The time limit is
that of the process the reward runs in (rewards.timeout_seconds).
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from lightrft.rewards.text import choice
from lightrft.utils.answers import LAST_NUMBER, boxed, concluded, conclusion, plain, value

LONGEST = 500
"""Characters; what is longer is no answer, and could keep the parser busy for minutes."""
EXPLOSIVE = re.compile(
    r"\^\s*\{?\s*\(?[\w.]+\s*\^|\^\s*\{?\s*-?\d{4,}|\d{4,}\s*!|!\s*!|\)\s*!|\\binom\{?\d{5}"
)
"""Towers of powers, huge exponents, factorials of large numbers: computing them exactly may take for ever."""


def math(answer: str, target: Any) -> float:
    r"""1 if the answer's conclusion equals the target as mathematics, else 0.

    For what counts as the conclusion see `utils.answers.conclusion`.
    """
    found = conclusion(answer)
    return float(found is not None and equal(found, str(target)))


def boxed_math(answer: str, target: Any) -> float:
    r"""Like math, but only a \boxed{...} counts."""
    found = boxed(concluded(answer))
    return float(found is not None and equal(found, str(target)))


def choice_or_math(answer: str, target: Any) -> float:
    """Like `choice` where the target is a letter from A to J, like `math` elsewhere: for data sets that mix both."""
    return choice(answer, str(target)) if re.fullmatch("[A-J]", str(target)) else math(answer, target)


def last_number(answer: str, target: Any) -> float:
    """1 if the last number in the answer is the target, else 0."""
    found = LAST_NUMBER.findall(answer)
    return float(bool(found) and value(found[-1]) == value(str(target)))


def equal(answer: str, target: str) -> bool:
    """Whether two expressions, LaTeX or plain, are the same mathematically."""
    one, other = plain(answer), plain(target)
    if one == other:
        return one != ""
    if value(one) is not None and value(other) is not None:
        return value(one) == value(other)
    if max(len(answer), len(target)) > LONGEST or EXPLOSIVE.search(one):
        return False
    return _verified(answer, target)


def _verified(answer: str, target: str) -> bool:
    from math_verify import verify

    right = _parsed(target)
    return bool(right) and bool(verify(right, _parsed(answer), timeout_seconds=None))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    # It warns at every call that time limits are off, which is what is wanted here.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found: list[Any] = parse(f"\\boxed{{{text}}}", parsing_timeout=None)  # type: ignore[arg-type]
    return found
