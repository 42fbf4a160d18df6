"""Questions about the boxes of NLVR's pictures: how many objects of a colour or a shape are in one of them.

Each picture shows three boxes; what is right is read off the scene that comes with it. Of every picture one question is
asked for each right answer it offers, so that no answer pays off that does not look.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightrft.datasets.formats import field, text_field
from lightrft.datasets.sources import BadRecords, Located

BOXES = ("left", "middle", "right")
TRAITS = {
    "yellow": ("color", "Yellow"),
    "black": ("color", "Black"),
    "blue": ("color", "#0099ff"),
    "squares": ("type", "square"),
    "triangles": ("type", "triangle"),
    "circles": ("type", "circle"),
}
"""Word in the question -> field of an object in the scene, and what it says there."""

Scene = Sequence[Sequence[dict[str, Any]]]
"""Box -> objects, from left to right."""


def questions(rows: Sequence[Located], folder: Path, split: str, bad: BadRecords) -> list[Located]:
    """Place and row (question, target, image) of each question, mixed in an order that is always the same.

    rows: with fields `image`, relative to `folder`, and `structured_rep`, the scene.
    """
    found = []
    for where, row in rows:
        try:
            image, scene = text_field(row, "image"), field(row, "structured_rep")
            asked = about(scene, random.Random(f"scenes/{image}"))
        except ValueError as error:
            bad(f"{where}: {error}")
            continue
        found += [
            (f"{where} {box} {trait}", _row(box, trait, count, folder / image)) for box, trait, count in asked
        ]
    random.Random(f"scenes/{split}").shuffle(found)
    return found


def about(scene: Scene, draw: random.Random) -> list[tuple[str, str, int]]:
    """Box, trait and count of one question for each count that the scene offers. ValueError for other than three boxes."""
    if len(scene) != len(BOXES):
        raise ValueError(f"the scene has {len(scene)} boxes, not {len(BOXES)}.")
    by_count: dict[int, list[tuple[str, str]]] = {}
    for box, objects in zip(BOXES, scene, strict=True):
        for trait, (name, value) in TRAITS.items():
            count = sum(thing[name] == value for thing in objects)
            by_count.setdefault(count, []).append((box, trait))
    return [(*draw.choice(places), count) for count, places in sorted(by_count.items())]


def _row(box: str, trait: str, count: int, image: Path) -> dict[str, Any]:
    return {
        "question": f"How many objects in the {box} box are {trait}?",
        "target": str(count),
        "image": str(image),
    }
