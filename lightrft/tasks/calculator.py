"""Sums, differences and products of numbers of three and four digits: beyond a small model, within a calculator's reach.

    What is 4821 * 377?   <calc>4821 * 377</calc>   1817517   The answer is 1817517.

Every prompt shows one such exchange; whether a calculator replies is up to the run (environment.tools).
"""

from __future__ import annotations

import random

from lightrft.tasks.base import distinct_questions
from lightrft.types import Message, Record

MAX_TOKENS = 160
TRAIN, EVALUATE = 2000, 200
WORDS = {
    "*": ("What is {} * {}?", "Multiply {} by {}.", "How much is {} times {}?"),
    "+": ("What is {} + {}?", "Add {} and {}."),
    "-": ("What is {} - {}?", "Subtract: {} - {}."),
}


MESSAGES: list[Message] = [
    {
        "role": "system",
        "content": "You can use a calculator. Write <calc>EXPRESSION</calc> and the result is sent to you. Then answer with just the "
        "number.\nExample:\nWhat is 12 * 34?\n<calc>12 * 34</calc>\n408\nThe answer is 408.",
    },
    {"role": "user", "content": "What is 12 * 340?"},
    {"role": "assistant", "content": "<calc>12 * 340</calc>"},
    {"role": "tool", "content": "4080"},
    {"role": "assistant", "content": "The answer is 4080."},
]
"""What stands before every question."""


def questions(split: str, seed: int) -> list[tuple[list[Message], str]]:
    """Prompts and results; half of the questions are products. The evaluation split is the same for every seed, and no question is in
    both."""
    found = distinct_questions("calculator", _question, split, seed, TRAIN, EVALUATE)
    return [
        ([*MESSAGES, Message(role="user", content=question)], result) for question, result in found.items()
    ]


def gold(record: Record) -> str:
    """A right answer."""
    return f"The answer is {record.target}."


def _question(draw: random.Random) -> tuple[str, str]:
    a, b = draw.randint(100, 9999), draw.randint(100, 9999)
    sign = draw.choice("**+-")
    result = {"*": a * b, "+": a + b, "-": a - b}[sign]
    return draw.choice(WORDS[sign]).format(a, b), str(result)
