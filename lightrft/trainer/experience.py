"""Judged groups that outlive their step: drawn too much, or kept to be learnt from again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from lightrft.config import ReplayConfig
from lightrft.trainer.storage import restored, stored
from lightrft.types import Trajectory

Group = list[Trajectory]


class Experience:
    """What this rank remembers of earlier steps.

    Answers keep the log-probs they had under the weights that sampled them (columns old and entropy); everything else is
    computed anew in each step that learns from them.
    """

    def __init__(self, config: ReplayConfig, ranks: int = 1) -> None:
        if config.groups % ranks:
            raise ValueError(
                f"replay.groups={config.groups} cannot be shared by {ranks} processes. Set it to a multiple of {ranks}."
            )
        self.groups, self.max_age = config.groups // ranks, config.max_age
        self.waiting: list[Group] = []
        """Drawn in this step, to be learnt from in the next."""
        self.earlier: list[tuple[int, Group]] = []
        """Step in which a group was learnt from first, and the group; the oldest first."""

    def take_waiting(self) -> list[Group]:
        """The groups that waited for this step; none wait any more."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def again(self, step: int, draw: random.Random) -> list[Group]:
        """Groups of the last `max_age` steps to learn from again, at random and none twice; fewer if there are fewer."""
        self.earlier = [(born, group) for born, group in self.earlier if step - born <= self.max_age]
        places = draw.sample(range(len(self.earlier)), min(self.groups, len(self.earlier)))
        return [self.earlier[place][1] for place in sorted(places)]

    def remember(self, step: int, groups: Sequence[Group]) -> None:
        """Keeps the new groups of a step, if any step is to learn from them again."""
        if self.groups:
            self.earlier += [(step, group) for group in groups]

    def snapshot(self) -> dict[str, Any]:
        """What is remembered now; later steps do not change it."""
        return {"waiting": list(self.waiting), "earlier": list(self.earlier)}

    @staticmethod
    def state(snapshot: dict[str, Any]) -> dict[str, Any]:
        """A snapshot as it is written into a checkpoint."""
        groups = [*snapshot["waiting"], *(group for _, group in snapshot["earlier"])]
        return {
            "born": [step for step, _ in snapshot["earlier"]],
            "sizes": [len(group) for group in groups],
            "answers": stored([t for group in groups for t in group]),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back."""
        answers = iter(restored(state["answers"]))
        groups = [[next(answers) for _ in range(size)] for size in state["sizes"]]
        cut = len(groups) - len(state["born"])
        self.waiting = groups[:cut]
        self.earlier = list(zip(state["born"], groups[cut:], strict=True))
