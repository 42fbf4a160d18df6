"""Plain shapes on white: drawn by a program, and read from a picture by another that knows nothing of how they were drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (240, 200, 40)}
GROUNDS = ((255, 255, 255), (0, 0, 0), (128, 128, 128))
"""What is no colour of a shape."""
SIDE = 128
"""Rows and columns that a picture is read at, at most."""
SMALLEST = 12
"""Pixels of the smallest part or hole at that size; less is a speck."""
NARROWEST = 9
"""Pixels of the narrower side of the smallest shape at that size: a circle in less may look like a square."""
ALIKE = {"circle": 0.87, "square": 0.92, "triangle": 0.74}
"""Shape -> least share of pixels in common with it, of all that either has, for a part to be called so: a triangle loses its point to blur. A square
has 0.79 in common with a circle, a plus sign at most 0.86; a house 0.68 with a triangle."""
INSIDE: dict[str, Callable[[Any, Any], Any]] = {
    "circle": lambda down, right: down**2 + right**2 <= 1,
    "square": lambda down, right: (abs(down) <= 1) & (right <= 1),
    "triangle": lambda down, right: (abs(down) <= 1) & (right <= (down + 1) / 2),
}
"""Shape -> whether a point is in it, by its distance below the middle and that to the side of it, in halves of the shape's height."""
SHAPES = tuple(INSIDE)


class Found(NamedTuple):
    """A shape in a picture."""

    colour: str
    shape: str
    """One of SHAPES, or empty: none of them, or cut off by the border of the picture, or with a hole in it."""
    row: float
    column: float
    """Middle of the box around it, as shares of the picture."""


def drawn(objects: list[tuple[str, str, float, float]], *, side: int = SIDE, size: float = 0.1) -> Any:
    """(side, side, 3) uint8: a picture with these (colour, shape, row, column), the middles as shares of it, `size` the half of their height."""
    import numpy

    rows, columns = (numpy.mgrid[:side, :side] + 0.5) / side
    image = numpy.full((side, side, 3), 255, numpy.uint8)
    for colour, shape, row, column in objects:
        inside = INSIDE[shape]((rows - row) / size, abs(columns - column) / size)
        image[inside] = COLOURS[colour]
    return image


def read(image: Any) -> list[Found]:
    """The shapes in a picture (H, W, 3) of type uint8; specks are left out."""
    import numpy

    small = _at_most(numpy.asarray(image, numpy.float64), SIDE)
    names = [*COLOURS, *[""] * len(GROUNDS)]
    known = numpy.array([*COLOURS.values(), *GROUNDS], numpy.float64)
    nearest = ((small[:, :, None] - known) ** 2).sum(-1).argmin(-1)
    found = []
    for place, colour in enumerate(names):
        if colour:
            found += [_found(colour, mask) for mask in _apart(nearest == place)]
    return found


def _at_most(image: Any, most: int) -> Any:
    """The picture with means of whole squares of pixels, so that it has at most so many rows and columns."""
    step = -(-max(image.shape[:2]) // most)
    rows, columns = image.shape[0] // step, image.shape[1] // step
    cut = image[: rows * step, : columns * step]
    return cut.reshape(rows, step, columns, step, -1).mean((1, 3))


def _apart(mask: Any) -> list[Any]:
    """The parts of a mask that touch by their sides, specks left out: each pixel takes the least number of its neighbours, and then that pixel's, until none changes."""
    import numpy

    numbers = numpy.where(mask, numpy.arange(1, mask.size + 1).reshape(mask.shape), 0)
    far = mask.size + 1
    while True:
        padded = numpy.pad(numpy.where(mask, numbers, far), 1, constant_values=far)
        least = numpy.minimum.reduce(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        least = numpy.where(mask, least, 0)
        least = numpy.where(mask, least.ravel()[least - 1], 0)
        if (least == numbers).all():
            sizes = numpy.bincount(numbers[mask])
            return [numbers == n for n in numpy.nonzero(sizes >= SMALLEST)[0]]
        numbers = least


def _found(colour: str, mask: Any) -> Found:
    import numpy

    rows, columns = numpy.nonzero(mask)
    down, right = (slice(x.min(), x.max() + 1) for x in (rows, columns))
    middle = (down.start + down.stop) / 2 / mask.shape[0], (right.start + right.stop) / 2 / mask.shape[1]
    edges = (down.start, right.start, mask.shape[0] - down.stop, mask.shape[1] - right.stop)
    return Found(colour, _shape(mask[down, right]) if min(edges) else "", *middle)


def _shape(mask: Any) -> str:
    """The one of SHAPES that covers most of the same pixels as this part in the box around it; empty where none is close, where the box is too small
    or too narrow to tell, and for a part with a hole."""
    import numpy

    height, width = mask.shape
    if min(height, width) < NARROWEST or not 0.6 < height / width < 1.67:
        return ""
    outside, *holes = _apart(numpy.pad(~mask, 1, constant_values=True))
    if holes:
        return ""
    whole = ~outside[1:-1, 1:-1]  # with its specks
    shares = {
        shape: (whole & made).sum() / (whole | made).sum() for shape, made in _ideal(height, width).items()
    }
    best = max(shares, key=lambda shape: shares[shape])
    return best if shares[best] >= ALIKE[best] else ""


def _ideal(height: int, width: int) -> dict[str, Any]:
    """Each of SHAPES as it fills a box of so many pixels."""
    import numpy

    down, right = (2 * (numpy.arange(n) + 0.5) / n - 1 for n in (height, width))
    down, right = down[:, None], abs(right[None])
    return {shape: inside(down, right) for shape, inside in INSIDE.items()}
