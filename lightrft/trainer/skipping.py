"""Responses that cannot change a gradient, and so need not be read for it.

Where the objective of a token is its advantage times something, a response without advantage has a loss of 0 and a gradient of 0: such
are all responses of a group with equal rewards. They count in the denominators of the average like others, so an update is
the same with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lightrft.types import Trajectory

Idle = Callable[[Trajectory], bool]
"""Whether a scored response has no part in the gradient."""


def without_mask(t: Trajectory) -> bool:
    """Whether nothing of a response is learned from, whatever the loss: all its weights are 0."""
    return not any(t.mask)


def without_advantage(t: Trajectory) -> bool:
    """The same, or no token that is learned from has an advantage; NaN is none of 0."""
    return without_mask(t) or not bool(t.columns["advantages"][torch.tensor(t.mask)].any())


def worth_reading(answers: Sequence[Trajectory], idle: Idle) -> list[Trajectory]:
    """The responses that are not idle, in their order, and one that is of each kind which would otherwise be missing.

    A kind is what its prompt holds besides text. An update with a gradient of 0 still moves the weights (momentum, weight decay), and one
    without any gradient does not: so the shortest response stays where none of its kind is left, here or in a tower that only media
    reach, and no rank that had something to read is left without.
    """
    kept = {id(t) for t in answers if not idle(t)}
    present = {_kind(t) for t in answers if id(t) in kept}
    for t in sorted(answers, key=len):  # stable: the first of equally long ones
        if len(t) and _kind(t) not in present:
            kept.add(id(t))
            present.add(_kind(t))
    return [t for t in answers if id(t) in kept]


def _kind(t: Trajectory) -> frozenset[str]:
    return frozenset(t.prompt.media)
