"""Handwritten digits of 8 x 8 pixels that scikit-learn brings along: read from its file, nothing of it is imported.

1,797 pictures of UCI's optical recognition of handwritten digits (Alpaydin and Kaynak 1998, https://doi.org/10.24432/C50P49).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

FILE = "datasets/data/digits.csv.gz"
PARTS = {"draw": slice(0, 900), "reward": slice(900, 1350), "score": slice(1350, 1797)}
"""Who learns from which pictures: what draws them, the judge of the reward, and the judge of the held-out score."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TAUGHT = ("{}", "a {}", "the digit {}")
"""How pictures are called where something learns from them; the held-out score has another wording."""


@cache
def digits() -> tuple[Any, Any]:
    """Pictures (1797, 64) float32 in [-1, 1] and what they show (1797,), in one shuffled order.

    RuntimeError if scikit-learn is not installed.
    """
    import numpy

    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError(
            "scikit-learn, whose digits are drawn, is not installed: pip install scikit-learn."
        )
    rows = numpy.loadtxt(Path(found.submodule_search_locations[0]) / FILE, delimiter=",", dtype=numpy.float32)
    rows = rows[numpy.random.default_rng(0).permutation(len(rows))]
    return rows[:, :-1] / 8 - 1, rows[:, -1].astype(int)


def part(name: str) -> tuple[Any, Any]:
    """The pictures of one of PARTS, and what they show."""
    pictures, shown = digits()
    return pictures[PARTS[name]], shown[PARTS[name]]
