"""Sizes of the tensors of a recorded decoding pass: a few that many passes share."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Sizes:
    """Tensor sizes that a CUDA graph was captured for. Letters as in paged_attention.py."""

    answers: int
    shared_pages: int
    shared_width: int
    shared_depth: int
    own_pages: int
    own_depth: int

    def holds(self, other: Sizes) -> bool:
        """Whether a pass of that size fits without much waste."""
        pairs = list(zip(astuple(self), astuple(other), strict=True))
        return all(other <= mine for mine, other in pairs) and self.cost <= 2 * other.cost + 64

    @property
    def cost(self) -> int:
        """About what a pass computes: tokens, and the pages they meet."""
        return self.answers + self.shared_pages * self.shared_width + self.own_pages

    def rounded(self) -> Sizes:
        """A little more of each, so that passes to come fit too."""
        return Sizes(*map(_rounded, astuple(self)))


def _rounded(count: int) -> int:
    step = max(1, 2 ** (count.bit_length() - 3))
    return int(-(-count // step) * step)
