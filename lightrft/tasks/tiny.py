"""A task for models that know nothing: answer in the kind of characters that the question is written in.

"kqz" wants small letters, "KQZ" capitals, "482" digits; the reward is the share of the answer's characters of that
kind. A byte-level model with random weights starts near 0.1 and must read the question to pass 0.5.
"""

from __future__ import annotations

import random
import string
from typing import Any

from lightrft.types import Record

KINDS = {"small": string.ascii_lowercase, "capital": string.ascii_uppercase, "digit": string.digits}
LENGTH = 3
MAX_TOKENS = 8
TRAIN, EVALUATE = 600, 240


def questions(split: str, seed: int) -> list[tuple[str, str]]:
    """Questions and the name of their kind, kinds in turn; no question is in both splits.

    The evaluation split is the same for every seed.
    """
    draw = random.Random("tiny")
    by_kind = {
        kind: _distinct(draw, alphabet, (TRAIN + EVALUATE) // len(KINDS)) for kind, alphabet in KINDS.items()
    }
    held_out = EVALUATE // len(KINDS)
    if split == "evaluate":
        part = slice(0, held_out)
    else:
        part = slice(held_out, None)
        for found in by_kind.values():
            found[part] = random.Random(f"tiny/{seed}").sample(found[part], len(found[part]))
    return [
        pair
        for row in zip(*([(q, kind) for q in found[part]] for kind, found in by_kind.items()), strict=True)
        for pair in row
    ]


def gold(record: Record) -> str:
    """The question itself is a right answer."""
    return str(record.messages[-1]["content"])


def pairs(split: str, seed: int) -> list[dict[str, Any]]:
    """For each question a chosen response in its kind of characters and a rejected one in another, lengths drawn alike."""
    rows = []
    for question, kind in questions(split, seed):
        draw = random.Random(f"tiny/{question}")
        other = draw.choice([k for k in KINDS if k != kind])
        chosen, rejected = (
            "".join(draw.choice(KINDS[k]) for _ in range(draw.randint(1, 2 * LENGTH))) for k in (kind, other)
        )
        rows.append({"prompt": question, "chosen": chosen, "rejected": rejected})
    return rows


def _distinct(draw: random.Random, alphabet: str, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choice(alphabet) for _ in range(LENGTH))] = None
    return list(found)
