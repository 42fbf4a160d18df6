"""The processes that run this program, as one object for those who compute: numbers that ranks exchange, teams, failures.

Everything it does stands in a file of its own: collectives in group.py, teams in team.py, failures in faults.py, the way into
a run and out of it in join.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lightrft.parallel import faults, join, team
from lightrft.parallel.group import Group
from lightrft.parallel.status import STATUS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World(Group):
    """All processes of a run. Every method is called by all ranks or by none."""

    team: Any = None
    """The process group of the ranks that compute micro-batches together with this one (strategy.sequence_parallel); None: none."""

    @classmethod
    def current(cls, sequence_parallel: int = 1) -> World:
        """The initialised process group, or a world of one; neighbouring ranks make teams of `sequence_parallel`.

        With teams it is called by all ranks. ValueError if the ranks cannot be shared out.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(team=team.make_team(1, sequence_parallel))
        rank, size = dist.get_rank(), dist.get_world_size()
        return cls(rank, size, team.make_team(size, sequence_parallel))

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device, timeout_seconds: float) -> Iterator[World]:
        """Inside, this process is one of $WORLD_SIZE that were started together; alone where that is 1 or not set.

        The only place that makes and ends the process group. If the block raises, the other ranks come to know why and
        end as well; the first failure of all is told once, on the terminal and in RUN/log.txt, and then SystemExit.
        """
        with join.joined(device, timeout_seconds) as group:
            yield cls(group.rank, group.size)

    @property
    def team_size(self) -> int:
        """Number of ranks that compute a micro-batch together."""
        return team.team_size(self.team)

    def team_sum(self, value: float) -> float:
        """Sum over the ranks of this rank's team."""
        return team.team_sum(self.team, value, self.rank)

    def broadcast_in_turn(self, value: T) -> Iterator[tuple[T, bool]]:
        """The value of each rank of this rank's team in turn, and whether it is its own. Anything that pickles."""
        return team.broadcast_in_turn(self.team, value, self.rank)

    def independent(self) -> AbstractContextManager[None]:
        """Ranks run independently inside, without collectives, and meet at the end.

        If it raises on one rank it raises on all: Stopped if that is what it was, else PeerError on the others. So all are
        still together afterwards, and can save.
        """
        return faults.independent(self)

    def raise_if_failed(self) -> None:
        """Raises what was heard of other ranks, a failure or a stop. Call it often in long work inside `independent`."""
        faults.raise_if_failed()

    def begin_failing(self) -> None:
        """From here on this process handles a failure, and is left the time to tell of it."""
        faults.begin_failing()

    def can_save(self, done: int, error: Exception) -> bool:
        """Whether, after this error, all ranks are here with `done` whole steps, so that a collective save will succeed."""
        return faults.can_save(self, done, error)

    def output(self, logs: Path) -> Path:
        """The file in the folder `logs` for what this rank prints."""
        return join.output_file(logs, self.rank)

    def redirect_output(self, log: Path, logs: Path) -> None:
        """From now on, what ranks other than the first print goes to the folder `logs`, a file for each, and the first failure,
        of whichever rank, to the file `log`."""
        if STATUS.watch is not None:
            join.redirect_output(STATUS.watch, log, logs)
