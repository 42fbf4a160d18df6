"""Responses that cannot change a gradient, and so need not be read for it.

Where the objective of a token is its advantage times something, a response without advantage has a loss of 0 and a gradient of 0: such
are all responses of a group with equal rewards. They count in the denominators of the average like others, so an update is
the same with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lightrft.parallel.world import World
from lightrft.types import Trajectory

Idle = Callable[[Trajectory], bool]
"""Whether a scored response has no part in the gradient."""


def without_mask(t: Trajectory) -> bool:
    """Whether nothing of a response is learned from, whatever the loss: all its weights are 0."""
    return not any(t.mask)


def without_advantage(t: Trajectory) -> bool:
    """Whether no token of a response that is learned from has an advantage, or none is learned from; NaN is no 0."""
    return without_mask(t) or not bool(t.columns["advantages"][torch.tensor(t.mask)].any())


def worth_reading(answers: Sequence[Trajectory], idle: Idle, world: World) -> list[Trajectory]:
    """This rank's responses that are not idle, in their order; of each kind that would be missing on all ranks one idle response stays.

    A kind is what its prompt holds besides text. An update with a gradient of 0 still moves the weights (momentum, weight decay), and one
    without any gradient does not: so where none of its kind is left, the shortest stays, for the model and for a tower that only
    media reach. Which one that is does not depend on who has it. Called by all ranks.
    """
    kept = {id(t) for t in answers if not idle(t)}
    present = {_kind(t) for t in answers if id(t) in kept}
    shortest: dict[frozenset[str], tuple[bool, int, int, int]] = {}
    for place, t in enumerate(answers):
        if len(t):
            one = (without_mask(t), len(t), t.group, place)  # one with a token to report of, if there is any
            shortest[_kind(t)] = min(one, shortest.get(_kind(t), one))
    everywhere = world.gather((present, shortest))
    somewhere = set().union(*(kinds for kinds, _ in everywhere))
    for kind, (*here, place) in shortest.items():
        first = min(others[kind][:3] for _, others in everywhere if kind in others)
        if kind not in somewhere and tuple(here) == first:
            kept.add(id(answers[place]))
    return [t for t in answers if id(t) in kept]


def _kind(t: Trajectory) -> frozenset[str]:
    return frozenset(t.prompt.media)
