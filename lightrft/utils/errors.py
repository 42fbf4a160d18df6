"""One family of errors for what can fail while answers are drawn and judged, each with the border that it came over."""

from __future__ import annotations

from typing import ClassVar, Literal

Boundary = Literal["engine", "reward", "media", "memory", "environment"]
"""Whose failure it is: the engine that answers, a reward, a medium of a prompt, the device's memory, or an environment that
answers the policy (a tool, a sandbox)."""


class RolloutError(Exception):
    """A rollout cannot go on, and `boundary` says because of whom; the message says what to do.

    Each error of the family is a RuntimeError or, where a user's data or setting is wrong, a ValueError as well.
    """

    boundary: ClassVar[Boundary]


def boundary_of(error: BaseException) -> Boundary | None:
    """The border that a failure came over, also where other errors were raised from it; None for all other failures."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, RolloutError):
            return found.boundary
        found = found.__cause__
    return None
