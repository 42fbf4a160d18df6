"""Tasks of given pictures of digits, and of drawing two digits side by side, of which some pairs are never shown.

`two_digits`: "five two" wants a five, and a two to the right of it. 20 of the 100 pairs are evaluated alone: no task of this file trains on one of
them, neither as a text nor as a picture. Training reads pictures with one judge (reward `two_digits`), the task's own score comes from a second one
of another kind, taught on other pictures (rewards/digits.py).
`digit_pictures`, `two_digit_pictures`: texts with pictures to learn from (`lightrft sft`), so many percent of whose digits are named at
random: by any name, their own among them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from lightrft.config import TaskConfig
from lightrft.media.sources import Made
from lightrft.tasks.base import Records, Split, Task, limited, no_option
from lightrft.types import Message, Record
from lightrft.utils.digits import TAUGHT, WORDS, part

PICTURES, HELD_OUT_PICTURES = 4000, 10
"""Pictures of pairs to learn from, and of each held-out pair."""
ALL = [(a, b) for a in range(10) for b in range(10)]
HELD_OUT = frozenset((a, (3 * a + more) % 10) for a in range(10) for more in (1, 5))
"""Pairs that are evaluated: each digit stands in two of them on the left, and in two on the right."""
PAIRS: dict[Split, list[tuple[int, int]]] = {
    "train": [pair for pair in ALL if pair not in HELD_OUT],
    "evaluate": sorted(HELD_OUT),
}
SHOWN: dict[Split, str] = {"train": "draw", "evaluate": "score"}
"""Whose pictures those of a split are made of."""
FORMS: dict[Split, tuple[str, ...]] = {"train": TAUGHT, "evaluate": ("the number {}",)}
"""How a digit is called in a split."""
Shown = tuple[str, tuple[int, ...]]
"""A text, and the places of the digits that its picture is made of."""


def said(pair: Sequence[int]) -> str:
    """How a pair of digits is called."""
    return " ".join(WORDS[digit] for digit in pair)


def two_digits(option: str) -> Task:
    """Two handwritten digits side by side by their names; evaluated on pairs that are never trained on, by a second judge."""
    no_option("two_digits", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        found = [
            Record(f"two_digits/{a}{b}", [Message(role="user", content=said((a, b)))], [a, b], "two_digits")
            for a, b in PAIRS[split]
        ]
        return limited(Records(found), split, config)

    return Task("two_digits", load, {"two_digits_second": 1.0}, lambda record: said(record.target))


def one_each(split: Split, draw: random.Random, wrong: float) -> Iterator[Shown]:
    """Each picture of one digit, by its name or, for a share `wrong`, by that of any digit."""
    for place, digit in enumerate(part(SHOWN[split])[1]):
        named = draw.randrange(10) if draw.random() < wrong else int(digit)
        yield draw.choice(FORMS[split]).format(WORDS[named]), (place,)


def pairs_of(split: Split, draw: random.Random, wrong: float) -> Iterator[Shown]:
    """Pictures of pairs. A share `wrong` of the digits has the name of any digit. Where the text would be that of no pair of the split, both
    digits are named anew, so that fewer names are wrong than by chance."""
    places: dict[int, list[int]] = {digit: [] for digit in range(10)}
    for place, digit in enumerate(part(SHOWN[split])[1]):
        places[int(digit)].append(place)
    known = set(PAIRS[split])
    held_out = split == "evaluate"
    pairs = PAIRS[split] * HELD_OUT_PICTURES if held_out else draw.choices(PAIRS[split], k=PICTURES)
    for pair in pairs:
        named = tuple(draw.randrange(10) if draw.random() < wrong else digit for digit in pair)
        while named not in known:
            named = tuple(draw.randrange(10) if draw.random() < wrong else digit for digit in pair)
        yield said(named), tuple(draw.choice(places[digit]) for digit in pair)


def _pictures(
    name: str, shown: Callable[[Split, random.Random, float], Iterator[Shown]], option: str
) -> Task:
    if option and not (option.isdecimal() and int(option) < 100):
        raise ValueError(
            f"task '{name}:{option}': name the percentage of the digits that are named at random in training, below 100, e.g. {name}:30, or none: {name}."
        )
    full, share = f"{name}:{option}" if option else name, int(option or 0) / 100

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        draw, wrong = random.Random(f"{name}/{split}/{seed}"), share if split == "train" else 0.0
        found = [
            Record(f"{full}/{split}-{n}", [Message(role="user", content=text)], [drawn(split, places)], full)
            for n, (text, places) in enumerate(shown(split, draw, wrong))
        ]
        return limited(Records(found), split, config)

    return Task(full, load, {}, _no_text)


def drawn(split: Split, places: Sequence[int]) -> Message:
    """The response that is a picture of the digits at these places of a split's."""
    made = Made(
        f"digits {' '.join(map(str, places))} of {SHOWN[split]}", partial(pixels, SHOWN[split], tuple(places))
    )
    return Message(role="assistant", content=[{"type": "image", "image": made}])


def pixels(name: str, places: Sequence[int]) -> Any:
    """(8, 8 N, 3) uint8: digits at these places of a part of the pictures, side by side."""
    import numpy

    side_by_side = numpy.concatenate([part(name)[0][place].reshape(8, 8, 1) for place in places], 1)
    levels = ((side_by_side + 1) * 127.5).round().astype("uint8")
    return levels.repeat(3, axis=2)


def _no_text(record: Record) -> str:
    raise ValueError(f"{record.id}: the response is a picture, which models that draw learn from alone.")


TASKS: dict[str, Callable[[str], Task]] = {
    "two_digits": two_digits,
    "digit_pictures": partial(_pictures, "digit_pictures", one_each),
    "two_digit_pictures": partial(_pictures, "two_digit_pictures", pairs_of),
}
