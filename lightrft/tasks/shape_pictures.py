"""Pictures of plain shapes with their texts, to learn to draw from (`lightrft sft`): what `draw_shapes` begins with.

`shape_pictures`, or `shape_pictures:count`, `:colour`, `:place` as `draw_shapes` has them; `shape_pictures:count:30` shows 30 percent of the pictures with
a text drawn at random. No combination that `draw_shapes` evaluates is in them, neither as a text nor as a picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lightrft.config import TaskConfig
from lightrft.media.sources import Made
from lightrft.tasks.base import Records, Split, Task, limited
from lightrft.tasks.drawings import ASKED, Asked, draw_shapes
from lightrft.types import Message, Record
from lightrft.utils.shapes import drawn

PICTURES, HELD_OUT_PICTURES = 4000, 100
"""Pictures to learn from, and held-out ones."""
SIDE, SIZE = 32, 0.17
"""Rows and columns of a picture, and half of a shape's height as a share of them: 11 pixels each."""
CELLS = [(row, column) for row in (0.25, 0.75) for column in (0.25, 0.75)]
TOWARDS = {"left of": (0, 1), "right of": (0, -1), "above": (1, 0), "below": (-1, 0)}
"""Place of the first shape -> which way the second is from there: down and right."""
Placed = tuple[str, str, float, float]
"""Colour, shape, and the row and column of its middle."""


def shape_pictures(option: str) -> Task:
    """The task of learning from pictures of shapes with their texts."""
    rest = option.split(":") if option else []
    kind = rest.pop(0) if rest and rest[0] in ASKED else ""
    percent = rest.pop(0) if rest else "0"
    if rest or not (percent.isdecimal() and int(percent) < 100):
        raise ValueError(
            f"task 'shape_pictures:{option}': name one of {', '.join(ASKED)}, the percentage of the pictures that have a text at random, below 100, or both, "
            "e.g. shape_pictures:count, shape_pictures:30 or shape_pictures:count:30."
        )
    name, share = f"shape_pictures:{option}" if option else "shape_pictures", int(percent) / 100

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        draw = random.Random(f"{name}/{split}/{seed}")
        wrong, count = (share, PICTURES) if split == "train" else (0.0, HELD_OUT_PICTURES)
        asked: list[Asked] = [
            (str(record.messages[-1]["content"]), record.target)
            for record in draw_shapes(kind).load(split, TaskConfig(), data, seed)
        ]
        found = [
            Record(f"{name}/{split}-{n}", [Message(role="user", content=text)], [response], name)
            for n, (text, response) in enumerate(_pictures(asked, draw, wrong, count))
        ]
        return limited(Records(found), split, config)

    return Task(name, load, {}, _no_text)


def _pictures(
    asked: Sequence[Asked], draw: random.Random, wrong: float, count: int
) -> list[tuple[str, Message]]:
    """Texts with pictures, all texts equally often; a share `wrong` of the pictures has any of the texts."""
    found = []
    for _ in range(count):
        text, target = draw.choice(asked)
        if draw.random() < wrong:
            text = draw.choice(asked)[0]
        objects = placed(target, draw)
        made = Made(f"{text}: {objects}", partial(drawn, objects, side=SIDE, size=SIZE))
        found.append((text, Message(role="assistant", content=[{"type": "image", "image": made}])))
    return found


def placed(target: Mapping[str, Any], draw: random.Random) -> list[Placed]:
    """What is asked for, each shape in the middle of a quarter of the picture of its own, and the first where `place` has it."""
    kinds = [(colour, shape) for number, colour, shape in target["objects"] for _ in range(number)]
    while True:
        cells = draw.sample(CELLS, len(kinds))
        if "place" not in target or _stands(target["place"], *cells):
            return [(*kind, *cell) for kind, cell in zip(kinds, cells, strict=True)]


def _stands(place: str, one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the other is that way from the first, and no way beside."""
    (down, right), way = TOWARDS[place], (other[0] - one[0], other[1] - one[1])
    return way[0] * down + way[1] * right > 0 and way[0] * right + way[1] * down == 0


def _no_text(record: Record) -> str:
    raise ValueError(f"{record.id}: the response is a picture, which models that draw learn from alone.")


TASKS: dict[str, Callable[[str], Task]] = {"shape_pictures": shape_pictures}
