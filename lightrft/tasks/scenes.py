"""Questions about the boxes of NLVR's pictures: how many objects are in one of them, or what most of them are.

Each picture shows three boxes side by side; a question shows one box, and what is right is read off the scene that comes
with the picture.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightrft.datasets.formats import field, text_field
from lightrft.datasets.sources import BadRecords, Located
from lightrft.media.parts import Made

BOXES = ("left", "middle", "right")
SIDE, APART = 100, 150
"""Width and height of a box, and how far the next one lies to the right, pixels."""
ASPECTS = {
    "color": (
        "Which colour do most of the objects have?",
        {"Black": "black", "#0099ff": "blue", "Yellow": "yellow"},
    ),
    "type": ("Which shape do most of the objects have?", {s: s for s in ("circle", "square", "triangle")}),
}
"""Field of an object -> question, and the answer to each of its values."""


@dataclass(frozen=True, slots=True)
class Box:
    """One third of a picture."""

    where: str
    image: Made
    objects: Sequence[Mapping[str, Any]]

    def row(self, question: str, target: str, about: str = "") -> Located:
        """Place and row of a question about it; `about` tells it from others about the same box."""
        return self.where + about, {"question": question, "target": target, "image": self.image}


Ask = Callable[[Sequence[Box], random.Random], list[Located]]


def questions(
    evaluated: Sequence[Located],
    others: Sequence[Located],
    folder: Path,
    split: str,
    bad: BadRecords,
    ask: Ask | None = None,
) -> list[Located]:
    """Place and row (question, target, image) of each question of a split, mixed in an order that is always the same.

    Pictures repeat their boxes, above all those with a tower in them: each is shown in one split only, that of the
    evaluation if it is in both. Rows have fields `image`, relative to `folder`, and `structured_rep`, the scene. `ask`:
    counted, the default, or most.
    """
    boxes = _boxes(evaluated, folder, bad)
    if split == "train":
        boxes = {key: box for key, box in _boxes(others, folder, bad).items() if key not in boxes}
    found = (ask or counted)(list(boxes.values()), random.Random(f"scenes/{split}/boxes"))
    random.Random(f"scenes/{split}").shuffle(found)
    return found


def counted(boxes: Sequence[Box], draw: random.Random) -> list[Located]:
    """How many objects are in each box."""
    return [box.row("How many objects are there?", str(len(box.objects))) for box in boxes]


def most(boxes: Sequence[Box], draw: random.Random) -> list[Located]:
    """Questions about the colour, and the shape, that most objects of a box have: each answer equally often, and boxes left out that have as
    many of two."""
    found = []
    for aspect, (question, words) in ASPECTS.items():
        by_answer: dict[str, list[Box]] = {word: [] for word in words.values()}
        for box in boxes:
            counts = Counter(words[thing[aspect]] for thing in box.objects).most_common(2)
            if len({count for _, count in counts}) == len(counts) > 0:
                by_answer[counts[0][0]].append(box)
        fewest = min(map(len, by_answer.values()))
        asked = f"{question} Answer {', '.join(list(by_answer)[:-1])} or {list(by_answer)[-1]}."
        for word, some in by_answer.items():
            found += [box.row(asked, word, f" {aspect}") for box in draw.sample(some, fewest)]
    return found


def _boxes(rows: Sequence[Located], folder: Path, bad: BadRecords) -> dict[str, Box]:
    """What is in a box, as text, and the first box that shows it."""
    found: dict[str, Box] = {}
    for where, row in rows:
        try:
            image, scene = folder / text_field(row, "image"), field(row, "structured_rep")
            if len(scene) != len(BOXES):
                raise ValueError(f"the scene has {len(scene)} boxes, not {len(BOXES)}.")
        except ValueError as error:
            bad(f"{where}: {error}")
            continue
        for place, (name, objects) in enumerate(zip(BOXES, scene, strict=True)):
            seen = Made(f"{name} box of {image}", partial(cut, str(image), place))
            key = str(sorted(json.dumps(thing, sort_keys=True) for thing in objects))
            found.setdefault(key, Box(f"{where} {name}", seen, objects))
    return found


def cut(path: str, place: int) -> Any:
    """One box of a picture, a PIL image."""
    from PIL import Image

    with Image.open(path) as whole:
        return whole.convert("RGB").crop((APART * place, 0, APART * place + SIDE, SIDE))
