"""How sure a share seen in some trials is."""

from __future__ import annotations

import math

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % score interval of a share seen in n trials: Wilson 1927, Journal of the American Statistical Association 22, 209-212."""
    centre = (share + Z95 * Z95 / (2 * n)) / (1 + Z95 * Z95 / n)
    half = Z95 / (1 + Z95 * Z95 / n) * math.sqrt(share * (1 - share) / n + Z95 * Z95 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
