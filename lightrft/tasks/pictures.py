"""Tasks for models that draw, with rewards by program.

`digits`: "the digit five" wants a picture of a five. Training reads pictures with one judge (reward `digit`); the task's own score comes
from a second one of another kind, taught on other pictures (rewards/digits.py), and its prompts have a wording that training never shows.
`digit_pairs`: for such a text a picture of the digit, and one of another, to be preferred to it (`lightrft dpo`).
Two digits in a picture, and pictures of digits to learn from: tasks/digit_pictures.py; shapes, texts and sizes: tasks/drawings.py;
pictures of shapes: tasks/shape_pictures.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from lightrft.config import TaskConfig
from lightrft.datasets.preferences import response
from lightrft.tasks import digit_pictures, drawings, shape_pictures
from lightrft.tasks.base import Records, Split, Task, limited, no_option
from lightrft.tasks.digit_pictures import FORMS, SHOWN, drawn
from lightrft.tasks.media_pairs import better
from lightrft.types import Message, Record
from lightrft.utils.digits import WORDS, part


def digits(option: str) -> Task:
    """A handwritten digit by its name; evaluated with another wording, by a second judge."""
    no_option("digits", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        found = [
            Record(
                f"digits/{split}-{form}-{n}", [Message(role="user", content=text.format(word))], n, "digits"
            )
            for form, text in enumerate(FORMS[split])
            for n, word in enumerate(WORDS)
        ]
        return limited(Records(found), split, config)

    return Task("digits", load, {"digit_second": 1.0}, lambda record: str(record.target))


def digit_pairs(option: str) -> Task:
    """A digit's name, a handwritten digit that it fits, and one that it does not; held-out pairs have other pictures and another wording."""
    no_option("digit_pairs", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        shown = [int(digit) for digit in part(SHOWN[split])[1]]
        draw = random.Random(f"digit_pairs/{split}/{seed}")
        found = []
        for n, digit in enumerate(shown):
            other = draw.choice([place for place, one in enumerate(shown) if one != digit])
            text = draw.choice(FORMS[split]).format(WORDS[digit])
            sides = [response([drawn(split, [n])], {"": 1.0}), response([drawn(split, [other])], {"": 0.0})]
            found.append(
                Record(f"digit_pairs/{split}-{n}", [Message(role="user", content=text)], sides, "digit_pairs")
            )
        return limited(Records(found), split, config)

    return Task("digit_pairs", load, {}, better)


TASKS: dict[str, Callable[[str], Task]] = {
    "digit_pairs": digit_pairs,
    "digits": digits,
    **digit_pictures.TASKS,
    **drawings.TASKS,
    **shape_pictures.TASKS,
}
