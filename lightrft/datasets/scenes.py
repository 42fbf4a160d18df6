"""Questions about the boxes of NLVR's pictures: how many objects are in one of them, or whether a kind of object is.

Each picture shows three boxes side by side; a question shows one box, and what is right is read off the scene that comes
with the picture.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightrft.datasets.formats import field, text_field
from lightrft.datasets.sources import BadRecords, Located
from lightrft.utils.media import Made

BOXES = ("left", "middle", "right")
SIDE, APART = 100, 150
"""Width and height of a box, and how far the next one lies to the right, pixels."""
COLOURS = {"Black": "black", "#0099ff": "blue", "Yellow": "yellow"}
SHAPES = ("circle", "square", "triangle")


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
    counted, the default, or kinds.
    """
    boxes = _boxes(evaluated, folder, bad)
    if split == "train":
        boxes = {key: box for key, box in _boxes(others, folder, bad).items() if key not in boxes}
    found = (ask or counted)(list(boxes.values()), random.Random(f"scenes/{split}/kinds"))
    random.Random(f"scenes/{split}").shuffle(found)
    return found


def counted(boxes: Sequence[Box], draw: random.Random) -> list[Located]:
    """How many objects are in each box."""
    return [box.row("How many objects are there?", str(len(box.objects))) for box in boxes]


def kinds(boxes: Sequence[Box], draw: random.Random) -> list[Located]:
    """Whether there is a black circle, a blue square ... in a box: for each of the nine as many boxes with as without one."""
    found = []
    for colour, word in COLOURS.items():
        for shape in SHAPES:
            split: dict[bool, list[Box]] = {True: [], False: []}
            for box in boxes:
                split[any(o["color"] == colour and o["type"] == shape for o in box.objects)].append(box)
            fewer = min(map(len, split.values()))
            found += [
                box.row(f"Is there a {word} {shape}?", "yes" if present else "no", f" {word} {shape}")
                for present, some in split.items()
                for box in draw.sample(some, fewer)
            ]
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
