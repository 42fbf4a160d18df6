"""Plain shapes on white: drawn by a program, and read from a picture by another that knows nothing of how they were drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

COLOURS = {"red": (220, 40, 40), "green": (40, 160, 60), "blue": (40, 80, 220), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle")
GROUNDS = ((255, 255, 255), (0, 0, 0), (128, 128, 128))
"""What is no colour of a shape."""
SIDE = 64
"""Rows and columns that a picture is read at, at most."""
SMALLEST = 12
"""Pixels of the smallest shape at that size; less is a speck."""


class Found(NamedTuple):
    """A shape in a picture."""

    colour: str
    shape: str
    """One of SHAPES, or empty: none of them."""
    row: float
    column: float
    """Middle of the box around it, as shares of the picture."""


def drawn(objects: list[tuple[str, str, float, float]], *, side: int = SIDE, size: float = 0.1) -> Any:
    """(side, side, 3) uint8: a picture with these (colour, shape, row, column), the middles as shares of it, `size` the half of their height."""
    import numpy

    rows, columns = (numpy.mgrid[:side, :side] + 0.5) / side
    image = numpy.full((side, side, 3), 255, numpy.uint8)
    for colour, shape, row, column in objects:
        down, right = rows - row, abs(columns - column)
        inside = {
            "circle": down**2 + right**2 <= size**2,
            "square": (abs(down) <= size) & (right <= size),
            "triangle": (abs(down) <= size) & (right <= (down + size) / 2),
        }[shape]
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
            found += [_found(colour, mask) for mask in _apart(nearest == place) if mask.sum() >= SMALLEST]
    return found


def _at_most(image: Any, most: int) -> Any:
    """The picture with means of whole squares of pixels, so that it has at most so many rows and columns."""
    step = -(-max(image.shape[:2]) // most)
    rows, columns = image.shape[0] // step, image.shape[1] // step
    cut = image[: rows * step, : columns * step]
    return cut.reshape(rows, step, columns, step, -1).mean((1, 3))


def _apart(mask: Any) -> list[Any]:
    """The parts of a mask that hang together, by their sides: each pixel takes the least number of its neighbours until none changes."""
    import numpy

    numbers = numpy.where(mask, numpy.arange(1, mask.size + 1).reshape(mask.shape), 0)
    far = mask.size + 1
    while True:
        padded = numpy.pad(numpy.where(mask, numbers, far), 1, constant_values=far)
        least = numpy.minimum.reduce(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
        )
        least = numpy.where(mask, least, 0)
        if (least == numbers).all():
            return [numbers == n for n in numpy.unique(numbers[mask])]
        numbers = least


def _found(colour: str, mask: Any) -> Found:
    import numpy

    rows, columns = numpy.nonzero(mask)
    height, width = (int(numpy.ptp(x)) + 1 for x in (rows, columns))
    middle = (rows.min() + height / 2) / mask.shape[0], (columns.min() + width / 2) / mask.shape[1]
    return Found(colour, _shape(mask, height, width), *middle)


def _shape(mask: Any, height: int, width: int) -> str:
    """What fills so much of the box around it: a square all, a circle pi / 4, a triangle half, and its middle is at two thirds of its height."""
    import numpy

    if not 0.6 < height / width < 1.67:
        return ""
    rows = numpy.nonzero(mask)[0]
    filled = len(rows) / (height * width)
    if filled > 0.96:
        return "square"
    middle = (rows.mean() - rows.min()) / max(1, height - 1)
    if filled > 0.64 and 0.42 < middle < 0.58:
        return "circle"
    return "triangle" if 0.4 < filled < 0.72 and middle >= 0.58 else ""
