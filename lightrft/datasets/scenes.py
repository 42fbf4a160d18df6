"""Questions about the boxes of NLVR's pictures: how many objects are in one of them.

Each picture shows three boxes side by side; a question shows one box, and what is right is read off the scene that comes
with the picture.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightrft.datasets.formats import field, text_field
from lightrft.datasets.sources import BadRecords, Located
from lightrft.utils.media import Made

BOXES = ("left", "middle", "right")
SIDE, APART = 100, 150
"""Width and height of a box, and how far the next one lies to the right, pixels."""


def questions(
    evaluated: Sequence[Located], others: Sequence[Located], folder: Path, split: str, bad: BadRecords
) -> list[Located]:
    """Place and row (question, target, image) of each question of a split, mixed in an order that is always the same.

    Pictures repeat their boxes, above all those with a tower in them: each is asked about once, and not in training if
    it is evaluated. Rows have fields `image`, relative to `folder`, and `structured_rep`, the scene.
    """
    boxes = _boxes(evaluated, folder, bad)
    if split == "train":
        boxes = {key: asked for key, asked in _boxes(others, folder, bad).items() if key not in boxes}
    found = list(boxes.values())
    random.Random(f"scenes/{split}").shuffle(found)
    return found


def _boxes(rows: Sequence[Located], folder: Path, bad: BadRecords) -> dict[str, Located]:
    """What is in a box, as text, and the question about the first box that shows it."""
    found: dict[str, Located] = {}
    for where, row in rows:
        try:
            image, scene = folder / text_field(row, "image"), field(row, "structured_rep")
            if len(scene) != len(BOXES):
                raise ValueError(f"the scene has {len(scene)} boxes, not {len(BOXES)}.")
        except ValueError as error:
            bad(f"{where}: {error}")
            continue
        for place, (box, objects) in enumerate(zip(BOXES, scene, strict=True)):
            seen = Made(f"{box} box of {image}", partial(cut, str(image), place))
            question = {"question": "How many objects are there?", "target": str(len(objects)), "image": seen}
            key = str(sorted(json.dumps(thing, sort_keys=True) for thing in objects))
            found.setdefault(key, (f"{where} {box}", question))
    return found


def cut(path: str, place: int) -> Any:
    """One box of a picture, a PIL image."""
    from PIL import Image

    with Image.open(path) as whole:
        return whole.convert("RGB").crop((APART * place, 0, APART * place + SIDE, SIDE))
