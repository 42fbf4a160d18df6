"""Where this process is in its run, for those who look for it when something hangs: all that is global of a process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightrft.parallel.watch import Watch


@dataclass
class RankStatus:
    """Step, phase and collective of this process. Written by its main thread, read by the thread that watches it."""

    step: int = 0
    phase: str = "start"
    call: str = ""
    """The collective it is inside, with the place of the call; empty outside."""
    calls: int = 0
    """Collectives it has entered."""
    waited: float = 0.0
    """Seconds spent inside collectives so far: time in which other ranks were waited for."""
    moved: float = field(default_factory=time.monotonic)
    """When it last got on, on the monotonic clock."""

    changed: threading.Event = field(default_factory=threading.Event)
    """Set when a phase begins, so that others know at once."""

    watch: Watch | None = None
    """The threads that look after this rank and the others, from joining a run until its end; None alone."""

    def heartbeat(self) -> None:
        """Tells that the process has got on: the clock of those who look for a stall starts anew."""
        self.moved = time.monotonic()

    def set_phase(self, phase: str) -> None:
        """A phase begins."""
        self.phase = phase
        self.heartbeat()
        self.changed.set()

    def set_step(self, step: int) -> None:
        """A step begins."""
        self.step = step
        self.heartbeat()

    def enter_collective(self, call: str) -> None:
        """Tells that the process waits for other ranks in `call`."""
        self.call, self.calls = call, self.calls + 1
        self.heartbeat()

    def exit_collective(self, seconds: float) -> None:
        """Tells that all ranks have met, after so many seconds."""
        self.call, self.waited = "", self.waited + seconds
        self.heartbeat()

    def __str__(self) -> str:
        where = f"phase {self.phase}, step {self.step}" if self.step else f"phase {self.phase}"
        return f"{where}, in {self.call}" if self.call else where


STATUS = RankStatus()
"""The status of this process."""
