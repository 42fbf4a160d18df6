"""Groups that outlive their step: surplus ones, prefetched ones, unfinished ones, and those kept to be replayed."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from lightrft.config import ReplayConfig
from lightrft.runs.storage import restored, stored
from lightrft.trainer.batching import rows_of
from lightrft.trainer.flight import Flight, Group, apart, mark_older
from lightrft.types import Origin, Prompt

log = logging.getLogger("lightrft")

Compared = Literal["", "greedy", "values"]
"""What judged responses are compared with besides their siblings: nothing, greedy responses (trainer/baseline.py), or the values of
prompts (trainer/optimal_values.py)."""
KINDS = ("carried_over", "prefetched", "unfinished", "unanswered")
SAMPLED_AT = ("temperature", "first_token_temperature")
"""Settings of rollout that the log-probs of sampled tokens are of: responses that wait cannot be learned from with others."""
SAMPLED_BY = ("is_another_program", "samples_from_a_part")
"""Properties of rollout that say what weight responses are to have against the mismatch of engine and trainer."""


class RolloutBuffer:
    """Remembers groups of earlier steps, on this rank.

    Responses keep the log-probs they had under the weights that sampled them (columns old and entropy); everything else is
    computed anew in each step that learns from them.
    """

    def __init__(
        self,
        config: ReplayConfig,
        ranks: int = 1,
        *,
        cost: str = "",
        compared_with: Compared = "",
        refill: Callable[[Iterable[Group]], None] | None = None,
        needs_squares: bool = False,
        sampled_at: Mapping[str, float] | None = None,
        completed: Callable[[Sequence[Prompt]], list[Prompt]] = list,
    ) -> None:
        """`cost`: the part of a reward that answers must know, where there is a constraint. `compared_with`: the baseline that
        judged answers must know; `refill` gives it to those of a checkpoint, where it can. `needs_squares`: those scored before must know the column `squares`. `sampled_at`: SAMPLED_AT and SAMPLED_BY of now, for checkpoints. `completed` gives prompts back
        the media that are stored by name only. ValueError if `ranks` cannot share replay.groups_per_step."""
        if config.groups_per_step % ranks:
            raise ValueError(
                f"replay.groups_per_step={config.groups_per_step} cannot be shared by {ranks} processes. Set it to a multiple of {ranks}."
            )
        self.groups, self.max_age = config.groups_per_step // ranks, config.max_age
        self.cost, self.compared_with, self.refill, self.completed = cost, compared_with, refill, completed
        self.needs_squares, self.sampled_at = needs_squares, dict(sampled_at or {})
        self.sampled_before: dict[int, Mapping[str, float]] = {}
        """Number of a group out of a checkpoint that was sampled with other settings than `sampled_at` -> those."""
        self.carried_over: list[Group] = []
        """Drawn and judged in this step, to be learned from in the next."""
        self.unfinished: list[Group] = []
        """Not judged yet: some of their responses go on in the next step."""
        self.prefetched: list[Group] = []
        """Drawn for the next step (rollout.overlap_rewards, rollout.max_staleness), not judged yet."""
        self.flight: Flight | None = None
        """What is sampled for the next step now (rollout.max_staleness); a checkpoint holds what becomes of it."""
        self.unanswered: list[Group] = []
        """Prompts of the next step that a checkpoint holds without responses, which were lost with their engine; to be asked again. A group has one response without tokens."""
        self.asked = 0
        """The last step whose prompts were sampled ahead, whatever became of their responses."""
        self.replayable: list[tuple[int, Group]] = []
        """Step in which a group was learned from first, and the group; the oldest first."""

    def take_carried_over(self) -> list[Group]:
        """The groups that waited for this step; none wait any more."""
        taken, self.carried_over = self.carried_over, []
        _came_as("carried_over", taken)
        return taken

    def take_unfinished(self) -> list[Group]:
        """The groups whose responses are to go on; none wait any more."""
        taken, self.unfinished = self.unfinished, []
        return taken

    def take_prefetched(self) -> list[Group]:
        """The groups that were sampled for this step; none wait any more."""
        taken, self.prefetched = self.prefetched, []
        return taken

    def take_unanswered(self) -> list[Group]:
        """The prompts to be asked again, as groups; none wait any more."""
        taken, self.unanswered = self.unanswered, []
        return taken

    def any_from_a_part(self, groups: Sequence[Group]) -> bool:
        """Whether any of these was sampled before a resume from a part of the distribution that the trainer does not know."""
        before = (self.sampled_before.get(group[0].group, {}) for group in groups)
        return any(settings.get(SAMPLED_BY[1]) for settings in before)

    def mark_stale(self) -> None:
        """The weights have changed: what has been sampled and not learned from is of older ones now."""
        mark_older([*self.prefetched, *self.unfinished])
        if self.flight is not None:
            self.flight.outdated = True

    def sample(self, step: int, draw: random.Random) -> list[Group]:
        """Groups of the last `max_age` steps to learn from again, at random and none twice; fewer if there are fewer."""
        self.replayable = [(born, group) for born, group in self.replayable if step - born <= self.max_age]
        places = draw.sample(range(len(self.replayable)), min(self.groups, len(self.replayable)))
        groups = [self.replayable[place][1] for place in sorted(places)]
        _came_as("replayed", groups)
        return groups

    def add(self, step: int, groups: Sequence[Group]) -> None:
        """Keeps the new groups of a step, if any step is to learn from them again."""
        if self.groups:
            self.replayable += [(step, group) for group in groups]

    def state(self) -> dict[str, Any]:
        """The groups remembered now; later steps do not change it. See `packed`."""
        prefetched, unfinished = (
            [[apart(t) for t in group] for group in groups] for groups in (self.prefetched, self.unfinished)
        )
        return {
            "asked": self.asked,
            "carried_over": list(self.carried_over),
            "prefetched": prefetched,
            "unfinished": unfinished,
            "unanswered": list(self.unanswered),
            "flight": self.flight,
            "replayable": list(self.replayable),
        }

    def packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """A `state` as it is written into a checkpoint; packing takes time, so only what is written is packed.

        What was being sampled is waited for, so that the run goes on as if it had not been interrupted.
        """
        kinds = {name: list(state[name]) for name in KINDS}
        if state["flight"] is not None:
            kinds["prefetched"] += state["flight"].groups()
            kinds["unanswered"] += state["flight"].unanswered()
        groups = [
            *(g for groups in kinds.values() for g in groups),
            *(group for _, group in state["replayable"]),
        ]
        return {
            "cost": self.cost,
            "sampled_at": self.sampled_at,
            "sampled_before": {
                place: self.sampled_before[group[0].group]
                for place, group in enumerate(groups)
                if group[0].group in self.sampled_before
            },
            "compared_with": self.compared_with,
            "asked": state["asked"],
            "counts": {name: len(groups) for name, groups in kinds.items()},
            "born": [step for step, _ in state["replayable"]],
            "sizes": [len(group) for group in groups],
            "answers": stored([t for group in groups for t in group]),
        }

    def load(self, packed: dict[str, Any]) -> None:
        """Takes a `packed` state back, but for judged responses that lack what the algorithm of now compares them with."""
        self._take([packed])

    def share(self, ranks: Sequence[dict[str, Any]], rank: int, size: int) -> None:
        """Takes the share of one rank of `size` from what another number of ranks packed: whole groups, dealt out in their order.

        Prompts are dealt out to ranks in the same way, so each rank has the groups that it would have drawn itself.
        """
        self._take(ranks)
        waiting = sum(len(getattr(self, name)) for name in KINDS)
        if rank == 0 and waiting + len(self.replayable):
            log.warning(
                "the run goes on with another number of processes, %d instead of %d: %d groups that wait to be learned from and %d of "
                "earlier steps to be learned from again are shared out among them",
                size, len(ranks), waiting, len(self.replayable),
            )  # fmt: skip
        for name in KINDS:
            setattr(self, name, getattr(self, name)[rank::size])
        self.replayable = self.replayable[rank::size]

    def _take(self, ranks: Sequence[dict[str, Any]]) -> None:
        """Remembers what these ranks packed, groups in the order of their numbers."""
        kinds: dict[str, list[Group]] = {name: [] for name in KINDS}
        replayable: list[tuple[int, Group]] = []
        for packed in ranks:
            groups = self._groups(packed)
            for name in KINDS:
                kinds[name] += [next(groups) for _ in range(packed["counts"].get(name, 0))]
            replayable += zip(packed["born"], groups, strict=True)
        if len(ranks) > 1:
            for groups_of_kind in kinds.values():
                groups_of_kind.sort(key=lambda group: group[0].group)
            replayable.sort(key=lambda entry: (entry[0], entry[1][0].group))
        if self.cost not in ("", *(packed["cost"] for packed in ranks)):
            why = f"they were judged without {self.cost}, the constraint.cost that was added since"
            _drop(why, kinds["carried_over"], replayable, lambda _: True)
        self._compare(ranks, kinds["carried_over"], replayable)
        if self.needs_squares:
            why = "they were scored without the sum of squared probabilities that algorithm.advantage reads since, and the weights have changed"
            _drop(why, kinds["carried_over"], replayable, _lacks_squares)
        if not self.groups:
            _drop("replay.groups_per_step=0", [], replayable, lambda _: True)
        for name, groups_now in kinds.items():
            setattr(self, name, groups_now)
        self.replayable = replayable
        self.asked = max(packed.get("asked", 0) for packed in ranks)

    def _compare(
        self,
        ranks: Sequence[dict[str, Any]],
        carried_over: list[Group],
        replayable: list[tuple[int, Group]],
    ) -> None:
        """Judged groups get the baseline of now, or are dropped where it would have to be sampled from weights that are gone."""
        if self.refill is not None:
            self.refill([*carried_over, *(group for _, group in replayable)])
        elsewise = any(
            packed.get("compared_with", self.compared_with) != self.compared_with for packed in ranks
        )
        if self.compared_with == "greedy":
            why = "they were judged without a greedy response, which algorithm.advantage compares with since, and the weights have changed"
            _drop(why, carried_over, replayable, lambda group: elsewise or math.isnan(group[0].baseline))
        elif self.compared_with == "values":
            why = "no response to their prompts could be judged when values were measured, which algorithm.advantage compares with"
            _drop(why, carried_over, replayable, lambda group: math.isnan(group[0].baseline))

    def _groups(self, packed: dict[str, Any]) -> Iterator[Group]:
        """The groups of one rank: those of each kind in turn, then those to be learned from again."""
        found = restored(packed["answers"], self.completed)
        if "asked" not in packed:
            # An earlier version numbered groups in another way: none of its numbers may come again.
            for t in found:
                t.group = -1 - t.group
        answers = iter(found)
        groups = [[next(answers) for _ in range(size)] for size in packed["sizes"]]
        for place, (kind, group) in enumerate(zip(_kinds(packed), groups, strict=True)):
            settings = sampled_with(packed, place)
            if kind == "unfinished":
                settings = _going_on(settings, self.sampled_at)
            if kind != "unanswered" and settings != self.sampled_at:
                self.sampled_before[group[0].group] = settings
        return iter(groups)


def _kinds(packed: Mapping[str, Any]) -> list[str]:
    """The kind of the group at each place of what a rank packed."""
    waiting = [name for name in KINDS for _ in range(packed["counts"].get(name, 0))]
    return waiting + ["replayable"] * len(packed["born"])


def _going_on(settings: Mapping[str, float], now: Mapping[str, float]) -> Mapping[str, float]:
    """What responses are sampled with that began with `settings` and go on with those of now: what is true of a part of them is of all."""
    return {
        **settings,
        **{name: settings[name] or now.get(name, 0) for name in SAMPLED_BY if name in settings},
    }


def sampled_with(packed: Mapping[str, Any], place: int) -> Mapping[str, float]:
    """SAMPLED_AT and SAMPLED_BY of the group at this place of what a rank packed, which may be older than the run's last resume."""
    found: Mapping[str, float] = packed.get("sampled_before", {}).get(place, packed.get("sampled_at", {}))
    return found


def waiting_by_settings(
    packed: Mapping[str, Any], oldest: float
) -> Iterator[tuple[Mapping[str, float], int, int]]:
    """By the settings that groups of a rank were sampled with (`sampled_with`): the settings, how many groups wait to be learned from, and how
    many of those learned from since step `oldest` may be so again."""
    kinds, found = _kinds(packed), dict[tuple[tuple[str, float], ...], tuple[int, int]]()
    first = len(kinds) - len(packed["born"])
    for place, kind in enumerate(kinds):
        again = kind == "replayable" and packed["born"][place - first] >= oldest
        wait = kind not in ("replayable", "unanswered")
        settings = tuple(sorted(sampled_with(packed, place).items()))
        waiting, replayed = found.get(settings, (0, 0))
        found[settings] = waiting + wait, replayed + again
    yield from ((dict(settings), *counts) for settings, counts in found.items())


def _drop(
    why: str,
    carried_over: list[Group],
    replayable: list[tuple[int, Group]],
    useless: Callable[[Group], bool],
) -> None:
    """Takes useless groups out of these lists of judged ones, with a word; what is not judged yet will know all it needs."""
    waiting = [group for group in carried_over if not useless(group)]
    earlier = [(step, group) for step, group in replayable if not useless(group)]
    lost = len(carried_over) - len(waiting), len(replayable) - len(earlier)
    if any(lost):
        log.warning(
            "%d groups that wait to be learned from and %d of earlier steps are dropped: %s", *lost, why
        )
    carried_over[:], replayable[:] = waiting, earlier


def _lacks_squares(group: Group) -> bool:
    return any("old" in t.columns and "squares" not in t.columns for t in group)


def _came_as(origin: Origin, groups: Sequence[Group]) -> None:
    for row in (row for group in groups for row in rows_of(group)):
        row.origin = origin
