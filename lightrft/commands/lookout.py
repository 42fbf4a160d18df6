"""What the launcher sees of the processes it started, and when it ends those that no longer answer.

The thread of a rank that looks after the others writes a new word into the store each second (parallel/watch.py). A process that
was stopped, or is stuck where Python cannot look, writes none: nothing inside it will end it, so the launcher does.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch.distributed as dist

from lightrft.parallel.watch import GRACE_SECONDS, POLL_SECONDS, here, most_seconds, of_attempt
from lightrft.utils.atomic import write_text

SILENT_SECONDS = 2 * GRACE_SECONDS
"""After a failure: silence of a rank after which it is no longer waited for."""
START_SECONDS = 300.0
"""Least time that processes have before their first word, for imports from a slow disk."""

Place = tuple[int, int]
"""(attempt, rank)."""


@dataclass
class Heard:
    """The last word of a rank, and when it came."""

    word: str
    at: float


@dataclass
class Lookout:
    """Looks at the ranks of a run once a second."""

    store: dist.Store
    verdicts: Path
    timeout_seconds: float
    killed: set[int] = field(default_factory=set)
    """Processes that were ended here."""
    _clock: float = 0.0
    """Seconds in which this process has looked: those in which it was stopped itself, with all the others, do not count."""
    _looked: float = field(default_factory=time.monotonic)
    _places: dict[int, Place | None] = field(default_factory=dict)
    _heard: dict[Place, Heard] = field(default_factory=dict)

    def look(self, children: Sequence[psutil.Process]) -> None:
        """Ends what has to be ended, at most once a second."""
        now = time.monotonic()
        if now - self._looked < POLL_SECONDS:
            return
        self._clock += min(now - self._looked, 2 * POLL_SECONDS)
        self._looked = now
        ranks = {place: child for child in children if (place := self._place(child)) is not None}
        attempt = max((attempt for attempt, _ in ranks), default=0)
        ranks = {place: child for place, child in ranks.items() if place[0] == attempt}
        silence = {place: self._silence(place) for place in ranks}
        if self._has_failed(attempt):
            for place, seconds in silence.items():
                if seconds > SILENT_SECONDS:
                    self._kill(ranks[place])
        elif ranks and min(silence.values()) > self._most(ranks):
            self._tell(attempt, min(silence.values()))
            for child in ranks.values():
                self._kill(child)

    @property
    def newest_attempt(self) -> int:
        """The last attempt of which a process was seen, from 0 on."""
        return max((place[0] for place in self._places.values() if place is not None), default=0)

    def _most(self, ranks: Sequence[Place] | dict[Place, psutil.Process]) -> float:
        most = most_seconds(self.timeout_seconds)
        return most if all(self._heard[place].word for place in ranks) else max(most, START_SECONDS)

    def _place(self, child: psutil.Process) -> Place | None:
        """Attempt and rank of a child; None for one that is no rank, or is gone."""
        if self._places.get(child.pid) is None:
            with contextlib.suppress(psutil.Error, KeyError):
                variables = child.environ()
                self._places[child.pid] = (
                    int(variables["TORCHELASTIC_RESTART_COUNT"]),
                    int(variables["RANK"]),
                )
        return self._places.get(child.pid)

    def _silence(self, place: Place) -> float:
        """Seconds since a rank's last new word, or since it was first seen."""
        attempt, rank = place
        word = here(of_attempt(self.store, attempt), rank)
        before = self._heard.get(place)
        if before is None or before.word != word:
            self._heard[place] = Heard(word, self._clock)
        return self._clock - self._heard[place].at

    def _has_failed(self, attempt: int) -> bool:
        file = self.verdicts / f"{attempt}.json"
        return file.exists() and "message" in json.loads(file.read_text(encoding="utf-8"))

    def _tell(self, attempt: int, seconds: float) -> None:
        words = {rank: heard.word for (a, rank), heard in sorted(self._heard.items()) if a == attempt}
        where = "".join(f" Rank {rank}: {json.loads(word)['where']}." for rank, word in words.items() if word)
        message = (
            f"lightrft: no process has given a sign for {seconds:.0f} s, so all were ended: they were stopped, or stuck where Python "
            f"cannot look.{where} The run can go on from its last checkpoint. If they only need longer, raise "
            f"strategy.timeout_seconds={self.timeout_seconds:g}."
        )
        write_text(self.verdicts / f"{attempt}.json", json.dumps({"message": message, "status": 2}))

    def _kill(self, child: psutil.Process) -> None:
        self.killed.add(child.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
