"""Groups that outlive their step: drawn too much, drawn ahead, not answered to the end, or kept to be learned from again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lightrft.config import ReplayConfig
from lightrft.runs.storage import restored, stored
from lightrft.types import Prompt, Trajectory

Group = list[Trajectory]
KINDS = ("carried_over", "prefetched", "unfinished")


class RolloutBuffer:
    """Remembers groups of earlier steps, on this rank.

    Answers keep the log-probs they had under the weights that sampled them (columns old and entropy); everything else is
    computed anew in each step that learns from them.
    """

    def __init__(
        self,
        config: ReplayConfig,
        ranks: int = 1,
        *,
        cost: str = "",
        completed: Callable[[Prompt], Prompt] = lambda prompt: prompt,
    ) -> None:
        """`cost`: the part of a reward that answers must know, where there is a constraint. `completed` gives prompts back the
        media that are stored by name only. ValueError if `ranks` cannot share replay.groups_per_step."""
        if config.groups_per_step % ranks:
            raise ValueError(
                f"replay.groups_per_step={config.groups_per_step} cannot be shared by {ranks} processes. Set it to a multiple of {ranks}."
            )
        self.groups, self.max_age = config.groups_per_step // ranks, config.max_age
        self.cost, self.completed = cost, completed
        self.carried_over: list[Group] = []
        """Drawn and judged in this step, to be learned from in the next."""
        self.unfinished: list[Group] = []
        """Not judged yet: some of their answers go on in the next step."""
        self.prefetched: list[Group] = []
        """Drawn for the next step (rollout.overlap_rewards), not judged yet."""
        self.asked = 0
        """The last step whose questions were drawn ahead, whatever became of their answers."""
        self.replayable: list[tuple[int, Group]] = []
        """Step in which a group was learned from first, and the group; the oldest first."""

    def take_carried_over(self) -> list[Group]:
        """The groups that waited for this step; none wait any more."""
        taken, self.carried_over = self.carried_over, []
        return taken

    def take_unfinished(self) -> list[Group]:
        """The groups whose answers are to go on; none wait any more."""
        taken, self.unfinished = self.unfinished, []
        return taken

    def take_prefetched(self) -> list[Group]:
        """The groups that were drawn for this step; none wait any more."""
        taken, self.prefetched = self.prefetched, []
        return taken

    def mark_stale(self) -> None:
        """The weights have changed: what has been sampled and not learned from is of older ones now."""
        for t in (t for group in [*self.prefetched, *self.unfinished] for t in group):
            t.stale = len(t)

    def sample(self, step: int, draw: random.Random) -> list[Group]:
        """Groups of the last `max_age` steps to learn from again, at random and none twice; fewer if there are fewer."""
        self.replayable = [(born, group) for born, group in self.replayable if step - born <= self.max_age]
        places = draw.sample(range(len(self.replayable)), min(self.groups, len(self.replayable)))
        return [self.replayable[place][1] for place in sorted(places)]

    def add(self, step: int, groups: Sequence[Group]) -> None:
        """Keeps the new groups of a step, if any step is to learn from them again."""
        if self.groups:
            self.replayable += [(step, group) for group in groups]

    def state(self) -> dict[str, Any]:
        """The groups remembered now; later steps do not change it. See `packed`."""
        prefetched, unfinished = (
            [[_apart(t) for t in group] for group in groups] for groups in (self.prefetched, self.unfinished)
        )
        return {
            "asked": self.asked,
            "carried_over": list(self.carried_over),
            "prefetched": prefetched,
            "unfinished": unfinished,
            "replayable": list(self.replayable),
        }

    def packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """A `state` as it is written into a checkpoint; packing takes time, so only what is written is packed."""
        kinds = {name: state[name] for name in KINDS}
        groups = [
            *(g for groups in kinds.values() for g in groups),
            *(group for _, group in state["replayable"]),
        ]
        return {
            "cost": self.cost,
            "asked": state["asked"],
            "counts": {name: len(groups) for name, groups in kinds.items()},
            "born": [step for step, _ in state["replayable"]],
            "sizes": [len(group) for group in groups],
            "answers": stored([t for group in groups for t in group]),
        }

    def load(self, packed: dict[str, Any]) -> None:
        """Takes a `packed` state back, unless its answers do not know the cost of a constraint that was added since."""
        if self.cost not in ("", packed["cost"]):
            return
        found = restored(packed["answers"], self.completed)
        if "asked" not in packed:
            # An earlier version numbered groups in another way: none of its numbers may come again.
            for t in found:
                t.group = -1 - t.group
        answers = iter(found)
        groups = iter([[next(answers) for _ in range(size)] for size in packed["sizes"]])
        self.asked = packed.get("asked", 0)
        for name in KINDS:
            setattr(self, name, [next(groups) for _ in range(packed["counts"][name])])
        self.replayable = list(zip(packed["born"], groups, strict=True))


def _apart(t: Trajectory) -> Trajectory:
    """The same answer with lists of its own, which do not grow when it goes on."""
    return replace(
        t,
        token_ids=list(t.token_ids),
        mask=list(t.mask),
        behavior=list(t.behavior),
        columns=dict(t.columns),
    )
