"""Rewards of pictures that a program can verify: what shapes are where, and how many bytes a picture takes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from lightrft.rewards.function import each
from lightrft.utils.imports import require
from lightrft.utils.shapes import Found, read

QUALITY = 95
"""Quality of the JPEG whose size is measured, as in DDPO."""
PLACES = {
    "left of": lambda a, b: b.column - a.column > abs(a.row - b.row),
    "right of": lambda a, b: a.column - b.column > abs(a.row - b.row),
    "above": lambda a, b: b.row - a.row > abs(a.column - b.column),
    "below": lambda a, b: a.row - b.row > abs(a.column - b.column),
}
"""Where one shape is of another: farther that way than across it."""


@each
def drawn_shapes(image: Any, target: Mapping[str, Any]) -> float:
    """1 if the picture shows these shapes, each as often as asked for, in its colour and place, and no others; else 0.

    `target`: `objects`, a list of [number, colour, shape], and where there are two `place`, a key of PLACES: where the first is of the second.
    All or nothing, as in GenEval (Ghosh et al. 2023, https://arxiv.org/abs/2310.11513).
    """
    found = read(image)
    asked = [(int(number), colour, shape) for number, colour, shape in target["objects"]]
    kinds = [_of(found, colour, shape) for _, colour, shape in asked]
    if [len(kind) for kind in kinds] != [number for number, _, _ in asked] or len(found) != sum(
        map(len, kinds)
    ):
        return 0.0
    place = target.get("place")
    return float(not place or PLACES[place](kinds[0][0], kinds[1][0]))


@each
def drawn_shapes_share(image: Any, target: Mapping[str, Any]) -> float:
    """Shapes of the picture that are asked for, as a share of all that are asked for or there; half of it where the place is wrong. 1 where
    `drawn_shapes` is 1, and less where that is 0: to learn from, since a picture of four shapes is seldom all right by chance.
    """
    found = read(image)
    asked = [(int(number), _of(found, colour, shape)) for number, colour, shape in target["objects"]]
    right = sum(min(number, len(kind)) for number, kind in asked)
    share = right / (sum(number for number, _ in asked) + len(found) - right)
    place = target.get("place")
    kinds = [kind for _, kind in asked]
    return share if not place or (all(kinds) and PLACES[place](kinds[0][0], kinds[1][0])) else share / 2


def _of(found: list[Found], colour: str, shape: str) -> list[Found]:
    return [one for one in found if (one.colour, one.shape) == (colour, shape)]


def jpeg_kilobytes(image: Any) -> float:
    """Size of the picture (H, W, 3) as a JPEG of quality 95, 1000 bytes."""
    file = io.BytesIO()
    require("PIL.Image", "media").fromarray(image).save(file, format="JPEG", quality=QUALITY)
    return len(file.getvalue()) / 1000


@each
def compressible(image: Any) -> float:
    """Minus the kilobytes of the picture as a JPEG (Black et al. 2023, https://arxiv.org/abs/2305.13301, section 5.1)."""
    return -jpeg_kilobytes(image)


@each
def incompressible(image: Any) -> float:
    """The kilobytes of the picture as a JPEG (Black et al. 2023, https://arxiv.org/abs/2305.13301, section 5.1)."""
    return jpeg_kilobytes(image)
