"""The box in which programs of the policy run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightrft.config.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class SandboxConfig:
    """Where programs that the policy wrote are run (docs/sandbox.md), and what each may use."""

    kind: Literal["auto", "bubblewrap", "landlock", "none"] = "auto"
    """auto: the better one that this machine has of bubblewrap and landlock; none: no sandbox, for programs that you trust."""
    python: str = ""
    """Interpreter that runs programs, which any user must be able to read; empty: this one if that is so, else the system's."""
    cpu_seconds: int = 8
    """Processor time of one program, whole seconds."""
    wall_seconds: float = 10.0
    """Longest time for the tests of one response, all together; with rewards.workers it must be shorter than rewards.timeout_seconds."""
    memory_mib: int = 512
    """Address space of one program, in MiB."""
    output_kib: int = 64
    """Most that a program may print, in KiB; one that prints more is ended, and what it writes to standard error is cut."""
    disk_mib: int = 16
    """Size of the folder in memory that a program may write in, in MiB; only with bubblewrap, else it can write nowhere."""

    processes: int = 0
    """Processes, and their threads, that one program may have at a time besides itself, such as a shell; only with bubblewrap. Processor
    time and memory are then those of all of them together. 0: none, and up to 32 threads."""
    machine_processes: int = 512
    """With sandbox.processes: processes that all programs may have on one machine, whichever ranks and runs of yours start them. A program
    that finds no place waits for one, at most for sandbox.wall_seconds."""

    def __post_init__(self) -> None:
        check_ranges("sandbox", self)
        if self.processes and self.kind not in ("auto", "bubblewrap"):
            raise ValueError(
                f"sandbox.processes={self.processes} needs a box that can end all that a program starts, which is sandbox.kind=bubblewrap "
                f"(or auto), not {self.kind}."
            )
        if self.machine_processes <= self.processes:
            raise ValueError(
                f"sandbox.machine_processes={self.machine_processes} has no room for one program and its sandbox.processes={self.processes}. "
                f"Set it to at least {self.processes + 1}."
            )
