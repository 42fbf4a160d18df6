"""What a program uses together with all processes that it has started, looked at from outside its box."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

EVERY_SECONDS = 0.05
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Used:
    """What the processes of a box use at a time."""

    memory: int
    """Bytes that they hold, those that several share counted once."""
    cpu_seconds: float
    """Processor time of all that are there, and of all that one of these has waited for."""
    processes: int


class Watch:
    """The processes below one, which the kernel limits one by one and nobody else together.

    All that a program starts stays below the first process of its box: one whose parent has ended becomes a child of that.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._next = pid, 0.0
        self.cpu_seconds = 0.0
        """The most processor time that was seen."""

    def is_due(self, now: float) -> bool:
        """Whether it is time to look again; not sooner than after EVERY_SECONDS, since a look takes processor time itself."""
        if now < self._next:
            return False
        self._next = now + EVERY_SECONDS
        return True

    def used(self) -> Used:
        """What is used at present. A process that ends meanwhile counts nothing."""
        found = [(memory_of(pid), seconds_of(pid)) for pid in below(self._pid)]
        used = Used(sum(memory for memory, _ in found), sum(seconds for _, seconds in found), len(found))
        self.cpu_seconds = max(self.cpu_seconds, used.cpu_seconds)
        return used


def below(pid: int) -> Iterator[int]:
    """A process, and all that descend from it."""
    yield pid
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                    yield from below(int(child))


def memory_of(pid: int) -> int:
    """Bytes of memory of a process: its share of what it has in common with others, or, where nobody may look, what is its own."""
    with suppress(OSError, IndexError, ValueError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    with suppress(OSError, IndexError, ValueError):
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * PAGE
    return 0


def seconds_of(pid: int) -> float:
    """Processor time of a process and of those that it has waited for."""
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / TICKS
    return 0.0
