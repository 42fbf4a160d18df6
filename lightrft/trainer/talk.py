"""One conversation on its way, in as many rows as its program has asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightrft.environments.base import Reply
from lightrft.environments.episodes import Failed
from lightrft.trainer.batching import rows_of
from lightrft.trainer.responses import fork
from lightrft.types import Ending, Message, Trajectory


@dataclass(eq=False)
class Talk:
    """One conversation on its way."""

    seed: int
    episode: int
    begun: Reply | Failed
    """What its environment said first."""
    t: Trajectory = field(init=False)
    """The response, once it has had its first turn."""
    failures: int = 0
    turns: int = 0
    """How often the policy has spoken."""
    number: int = 0
    """The row in which the policy speaks now: the response, 0, or one of its forks."""
    ends: list[list[int]] = field(default_factory=list)
    """Tokens of each row up to the end of each turn of the policy in it."""
    finishes: list[Ending] = field(default_factory=list)
    """How the last turn of each row ended."""

    def open(self, t: Trajectory) -> None:
        """Begins with the first turn of a response."""
        self.t, self.turns, self.number = t, 0, 0
        self.ends, self.finishes = [[]], [t.finish]

    @property
    def row(self) -> Trajectory:
        """The row in which the policy speaks now."""
        return rows_of([self.t])[self.number]

    def note_turn(self) -> None:
        """The policy has spoken: how the response ends now, and where in its row that turn does."""
        row, self.turns = self.row, self.turns + 1
        row.said.append(Message(role="assistant", content=row.answer))
        self.finishes[self.number] = row.finish
        # A response one of whose rows was cut is a truncated one, whichever row came last.
        self.t.answer, self.t.finish = row.answer, "length" if "length" in self.finishes else row.finish
        self.ends[self.number].append(len(row))

    def drop_row(self) -> None:
        """Forgets the newest row, in which nothing is said."""
        for rows in (self.t.forks, self.ends, self.finishes):
            rows.pop()
        self.number = len(self.ends) - 1

    def turn_to(self, number: int, turns: int) -> bool:
        """Goes on behind the first `turns` turns of a row: in it where it ends there, else in a new one, which learns from what follows
        alone. Whether that is new. ValueError for a row, or a turn of it, that is not there."""
        rows = rows_of([self.t])
        if not (0 <= number < len(rows) and 0 <= turns <= len(self.ends[number])):
            raise ValueError(f"there is no turn {turns} in row {number} of {len(rows)}")
        ends, self.number = self.ends[number][:turns], number
        kept = ends[-1] if ends else 0
        if ends and kept == len(rows[number]):
            return False
        self.t.forks.append(fork(rows[number], kept, turns, len(rows)))
        self.ends.append(ends)
        self.finishes.append("paused")
        self.number = len(rows)
        return True
