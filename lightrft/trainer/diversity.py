"""How different the pictures for one prompt are: rewards that rise while all pictures become the same are a known end of such runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightrft.parallel.world import World
from lightrft.types import Trajectory

log = logging.getLogger("lightrft")
NAME, IMAGE = "diversity/image", "image"
HALF = 0.5


def spread_of(made: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard deviation of a pixel, from -1 to 1, over the pictures for one prompt, on average over pixels; None of fewer than two."""
    import numpy

    pictures = [one[IMAGE] for one in made if IMAGE in one]
    if len(pictures) < 2:
        return None
    return float((numpy.stack(pictures).astype(numpy.float64) / 127.5).std(0).mean())


def diversity(groups: Sequence[Sequence[Trajectory]], world: World) -> dict[str, float]:
    """The mean of `spread_of` over the groups of all ranks; nothing where none has pictures."""
    found = [x for group in groups if (x := spread_of([t.made for t in group])) is not None]
    total, count = world.sum(torch.tensor([sum(found), len(found)], dtype=torch.float64)).tolist()
    return {NAME: total / count} if count else {}


@dataclass
class DiversityWatch:
    """Warns once when diversity has fallen below half of what it was in the first step, while the reward has risen."""

    first: tuple[float, float] | None = None
    """Diversity and reward of the first step."""
    warned: bool = False

    def check(self, metrics: Mapping[str, float]) -> None:
        """Looks at the metrics of a step, in order."""
        if NAME not in metrics or self.warned:
            return
        now = metrics[NAME], metrics["reward/mean"]
        if self.first is None:
            self.first = now
        spread, reward = self.first
        if now[0] < HALF * spread and now[1] > reward:
            self.warned = True
            log.warning(
                "pictures for one prompt become the same: %s fell from %.3f to %.3f while the reward rose from %.3f to %.3f. Raise "
                "algorithm.kl_coefficient, or stop earlier.",
                NAME, spread, now[0], reward, now[1],
            )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"first": self.first, "warned": self.warned}

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back."""
        self.first, self.warned = state["first"], state["warned"]
