"""Rewards for mathematics: find what an answer concludes, and whether it equals the target.

Equal text and exact arithmetic are decided here; the rest by math-verify (https://github.com/huggingface/Math-Verify), whose
own time limits stay off: they work in no thread but the main one and hide what they stop. What could keep it busy is
refused by its shape (`affordable`), and in a main thread it has UNDECIDED_SECONDS: an answer that cannot be decided is wrong,
not a failure of the reward, since a run that is resumed would meet the very same answer.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from lightrft.rewards.arithmetic import DEEPEST, computed
from lightrft.rewards.text import choice
from lightrft.utils.answers import LAST_NUMBER, boxed, concluded, conclusion, plain, value

LONGEST = 500
"""Characters; what is longer is no answer, and could keep the parser busy for minutes."""
UNDECIDED_SECONDS = 2.0
"""Seconds of processor time, so that a busy machine decides as an idle one does."""
HIGHEST_POWER = 50
"""Highest power in what is not plain arithmetic: larger ones are expanded term by term."""
MOST_TERMS = 20_000
"""Terms of all brackets with letters that are raised to a power, multiplied out."""
MOST_ELEMENTS = 20
"""Elements of a set or list: they are compared each with each."""
TOWER = re.compile(
    r"\^\s*\{?\s*\(?[\w.]+\s*\^|\}\s*\)?\s*\^|\d{4,}\s*!|!\s*!|\)\s*!|\\binom\{?\d{4}|\\(?:sum|prod|int|iint|lim|bigcup|bigcap)\b"
)
"""Towers of powers, factorials of large numbers, sums and limits: computing them exactly may take for ever."""
POWER = re.compile(r"\^\s*\{?\s*\(?\s*-?(\d+)")
RAISED = re.compile(r"\(([^()]*)\)\s*\^\s*\{?\s*(\d+)")
OF_WHOLE = re.compile(r"(?:[)}]|\\[a-z]+)\s*\^\s*\{?\s*(\d+)")
"""Powers of brackets and functions, which multiply each other's terms."""
BASE = re.compile(r"(\w+)_\{?(\d{1,2})\}?")
RELATIVE = 1e-6


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
    return float(bool(found) and value(found[-1]) is not None and value(found[-1]) == value(str(target)))


def equal(answer: str, target: str) -> bool:
    """Whether two expressions, LaTeX or plain, are the same mathematically; a percentage equals its number and its fraction."""
    if not target.strip() or target.strip().lower() == "nan":
        return False
    one, other = plain(answer), plain(target)
    if one == other:
        return one != ""
    left, right = _exact(one), _exact(other)
    if left is not None and right is not None:
        in_percent = 100 if "%" in answer and "%" not in target else 1
        of_percent = 100 if "%" in target and "%" not in answer else 1
        return bool(left == right or left / in_percent == right / of_percent)
    if _bases_differ(one, other) or re.search(r"\d\s*to\s*\d", answer):
        return False
    if max(len(answer), len(target)) > LONGEST or not (affordable(answer) and affordable(target)):
        return False
    return _verified(_readable(answer), _readable(target))


def affordable(text: str) -> bool:
    """Whether a computer algebra system surely ends with an expression: by its powers, terms, brackets and elements."""
    if TOWER.search(text) or text.count(",") >= MOST_ELEMENTS:
        return False
    if any(int(power) > HIGHEST_POWER for power in POWER.findall(text)):
        return False
    if sum(int(power) > 10 for power in OF_WHOLE.findall(text)) > 1:
        return False
    depth = deepest = 0
    for character in text:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(character, 0)
        deepest = max(deepest, depth)
    terms = 1
    for inside, power in RAISED.findall(text):
        terms *= (int(power) + 1) ** max(1, len(re.findall(r"[+-]", inside)))
    return deepest <= DEEPEST and terms <= MOST_TERMS


def _exact(text: str) -> Any:
    """The rational number a text without spacing stands for; in brackets, too: "(051)"."""
    number = value(text)
    if number is None:
        inner = re.fullmatch(r"\((-?[\d,]*\.?\d+)\)", text)
        number = value(inner[1]) if inner else computed(_over_words(text))
    return number


def _over_words(text: str) -> str:
    return re.sub(r"(?<=\d)times(?=\d)", "*", text)


def _bases_differ(one: str, other: str) -> bool:
    """Whether both are numbers in a stated base, and not the same one."""
    left, right = BASE.fullmatch(one), BASE.fullmatch(other)
    if left is None or right is None:
        return False
    try:
        return int(left[1], int(left[2])) != int(right[1], int(right[2]))
    except ValueError:
        return True


def _readable(text: str) -> str:
    """A conclusion as the parser takes it: words between alternatives as commas, letters that are constants upright."""
    text = re.sub(r"\\(?:text|mathrm)\{\s*([ei])\s*\}", r"\1", text)
    text = re.sub(r"\\(?:textbf|underline)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"(?<=\d)\s+(?:or|and)\s+(?=[-\d])", ", ", text)


def _verified(answer: str, target: str) -> bool:
    from math_verify import verify

    with suppress(_Undecided, RecursionError, MemoryError), _limited():
        right, found = _parsed(target), _parsed(answer)
        return bool(right) and bool(verify(right, found, timeout_seconds=None)) and _close(right, found)
    return False


def _close(right: list[Any], found: list[Any]) -> bool:
    """math-verify rounds to six places: two numbers that are both tiny are the same only if their ratio is near 1."""
    one, other = (next((x for x in side if getattr(x, "is_number", False)), None) for side in (right, found))
    if one is None or other is None:
        return True
    numbers = [complex(x.evalf(15)) for x in (one, other)]
    return abs(numbers[0] - numbers[1]) <= RELATIVE * max(map(abs, numbers))


class _Undecided(BaseException):
    """Past UNDECIDED_SECONDS; no Exception, since the checker catches those."""


@contextmanager
def _limited() -> Iterator[None]:
    """Raises _Undecided inside after UNDECIDED_SECONDS; in a thread that can have no alarm, or where one is set, only `affordable`
    guards."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getitimer(signal.ITIMER_VIRTUAL)[0]
    ):
        yield
        return

    def stop(_number: int, _frame: types.FrameType | None) -> None:
        raise _Undecided

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, UNDECIDED_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    # It warns at every call that time limits are off, which is what is wanted here.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    found: list[Any] = parse(f"\\boxed{{{text}}}", parsing_timeout=None)
    return found
