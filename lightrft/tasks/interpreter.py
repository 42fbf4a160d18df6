"""Small Python functions and what they return: beyond a small model, within reach of one that runs them.

    def f(x): return 37 * x - 4821
    What is f(615)?        <python>def f(x): return 37 * x - 4821
                           print(f(615))</python>        17934        The result is 17934.

The form of CRUXEval's output prediction (Gu et al. 2024, https://arxiv.org/abs/2401.03065) with functions that are generated, so that no
model has read them. Every prompt shows one exchange; whether an interpreter replies is up to the run (environment.tools).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from lightrft.tasks.base import distinct_questions
from lightrft.types import Message, Record

MAX_TOKENS = 256
TRAIN, EVALUATE = 2000, 200

MESSAGES: list[Message] = [
    {
        "role": "system",
        "content": "You can run Python. Write <python>PROGRAM</python> and what it prints is sent to you. Then answer with just the "
        "result.\nExample:\ndef f(x): return 3 * x + 4\nWhat is f(12)?\n<python>def f(x): return 3 * x + 4\nprint(f(12))</python>\n40\n"
        "The result is 40.",
    },
    {"role": "user", "content": "def f(x): return 25 * x - 8\nWhat is f(160)?"},
    {"role": "assistant", "content": "<python>def f(x): return 25 * x - 8\nprint(f(160))</python>"},
    {"role": "tool", "content": "3992"},
    {"role": "assistant", "content": "The result is 3992."},
]
"""What stands before every question."""

Made = tuple[str, str, int]
"""A function, its argument, and what it returns."""


def _line(draw: random.Random) -> Made:
    a, b, x = draw.randint(12, 99), draw.randint(100, 9999), draw.randint(100, 999)
    return f"def f(x): return {a} * x - {b}", str(x), a * x - b


def _rest(draw: random.Random) -> Made:
    a, b, x = draw.randint(12, 99), draw.randint(100, 999), draw.randint(100, 9999)
    return f"def f(x): return {a} * x % {b}", str(x), a * x % b


def _parts(draw: random.Random) -> Made:
    a, b, x = draw.randint(3, 29), draw.randint(3, 29), draw.randint(1000, 99999)
    return f"def f(x): return x // {a} + x % {b}", str(x), x // a + x % b


def _digits(draw: random.Random) -> Made:
    a, x = draw.randint(12, 99), draw.randint(10000, 9999999)
    return f"def f(x): return {a} * sum(int(d) for d in str(x))", str(x), a * sum(map(int, str(x)))


def _letters(draw: random.Random) -> Made:
    a = draw.randint(12, 99)
    text = "".join(draw.choice("abcde") for _ in range(draw.randint(6, 12)))
    letter = draw.choice("abcde")
    return (
        f"def f(s): return {a} * s.count('{letter}') + len(s)",
        f"'{text}'",
        a * text.count(letter) + len(text),
    )


FORMS: tuple[Callable[[random.Random], Made], ...] = (_line, _rest, _parts, _digits, _letters)


def questions(split: str, seed: int) -> list[tuple[list[Message], str]]:
    """Prompts and results. The evaluation split is the same for every seed, and no question is in both."""
    found = distinct_questions("interpreter", _question, split, seed, TRAIN, EVALUATE)
    return [
        ([*MESSAGES, Message(role="user", content=question)], result) for question, result in found.items()
    ]


def gold(record: Record) -> str:
    """A right answer."""
    return f"The result is {record.target}."


def _question(draw: random.Random) -> tuple[str, str]:
    function, argument, result = draw.choice(FORMS)(draw)
    return f"{function}\nWhat is f({argument})?", str(result)
