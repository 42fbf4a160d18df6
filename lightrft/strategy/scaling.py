"""Loss scaling for float16, whose smallest numbers are larger than most gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0, 0.5, 2000
"""Factors of the scale after so many good updates in a row, and after an overflow: torch.amp.GradScaler's."""


@dataclass
class LossScale:
    """The factor by which losses, and so gradients, are larger than they are (Micikevicius et al. 2018,
    https://arxiv.org/abs/1710.03740), by the rules of torch.amp.GradScaler.

    It is a power of two, so that scaling and its undoing round nothing. An update with an overflow is left out, and the next one has
    half the scale.
    """

    value: float = 65536.0
    good: int = 0
    """Updates without an overflow since the scale has changed."""
    finite_loss: bool = True
    """Whether the loss of the present update, which is not scaled, is a number; trainer/optimize.py says so before each step."""

    @property
    def explains(self) -> bool:
        """Whether a gradient that is not finite may come of this scale: where it is 1 or less, the gradient itself is not, and neither
        is that of a loss which is not finite."""
        return self.value > 1.0 and self.finite_loss

    def follow(self, *, finite: bool) -> None:
        """Moves the scale after an update whose gradient was finite or not; a loss that is not says nothing about it."""
        if not self.finite_loss:
            return
        if not finite:
            self.value, self.good = self.value * BACKOFF, 0
            return
        self.good += 1
        if self.good == GROWTH_INTERVAL:
            grown = self.value * GROWTH
            self.value, self.good = grown if math.isfinite(grown) else self.value, 0

    def state(self) -> list[float]:
        """For a checkpoint."""
        return [self.value, self.good]

    def load(self, state: list[float]) -> None:
        """Takes a `state` back."""
        self.value, self.good = float(state[0]), int(state[1])


def loss_scale(computed_in: torch.dtype) -> LossScale | None:
    """What scales the losses of a model that computes in this type; None where nothing is to be scaled."""
    return LossScale() if computed_in is torch.float16 else None
