"""What becomes of programs that were started: they are given their input and heard until they end or are over a limit, and are then gone."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightrft.sandbox.watch import Watch

Status = Literal["ended", "failed", "killed", "cpu", "wall", "output", "memory"]
CPU_SHARE = 0.75
"""Share of its processor time after which a program that was killed was killed for that: the kernel's count runs ahead of its report."""
SETUP_SECONDS = 30.0
"""Longest time until a box is confined, however busy the machine is."""


class SandboxError(RuntimeError):
    """The box failed, not the program in it: it could not be set up, or what it reported makes no sense."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: int = 4
    wall_seconds: float = 10.0
    memory_mib: int = 512
    output_kib: int = 64
    disk_mib: int = 16
    """Size of its folder, which is in memory; with Landlock it can write nowhere."""
    processes: int = 0
    """Processes that it may start, at a time; only with bubblewrap. Above 0, processor time and memory are those of all together."""
    machine_processes: int = 0
    """Processes of all such programs on this machine together; 0: without a limit."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program. `ended`: by itself, without error; `failed`: with an exit code or by a signal of its own; else by a
    limit."""

    status: Status
    stdout: str
    stderr: str
    why: str
    cpu_seconds: float

    @property
    def error(self) -> str:
        """Last line that it wrote to standard error; empty without any."""
        return next(reversed(self.stderr.strip().splitlines()), "")


@dataclass
class Started:
    """A program on its way, and what it has said so far."""

    process: subprocess.Popen[bytes]
    job: bytes
    stdin: bytes
    ends: dict[int, str]
    """Descriptor of ours -> what it is: job, told, stdin, stdout, stderr, report."""
    began: float
    cpu_seconds: int
    whole_group: bool
    """Whether it may have started others, which no box ends."""
    said: dict[str, bytearray] = field(default_factory=dict)
    alive: int = -1
    """Descriptor that is readable when the process has ended."""
    watch: Watch | None = None
    """What it uses together with the processes that it may start."""
    place: int = -1
    """Descriptor that holds its place among the processes of this machine."""
    over: Status | None = None
    outcome: Outcome | None = None


def finish(boxes: Sequence[Started], limits: Limits, until: Started | None = None) -> None:
    """Runs boxes side by side until all have ended, or `until` has, which ends the others when they are confined; fills their outcomes.
    SandboxError if one of them was never confined. Whatever happens, no process is left and no descriptor open."""
    try:
        with selectors.DefaultSelector() as waiting:
            for box in boxes:
                for descriptor, name in box.ends.items():
                    writes = name in ("job", "stdin")
                    waiting.register(
                        descriptor, selectors.EVENT_WRITE if writes else selectors.EVENT_READ, box
                    )
                waiting.register(box.alive, selectors.EVENT_READ, box)
            _attend(waiting, boxes, limits, until)
    finally:
        for box in boxes:
            _end(box)
    for box in boxes:
        if _is_ready(box):
            continue
        if box.over == "wall":
            raise SandboxError(
                f"a box was not confined within {SETUP_SECONDS:g} seconds; the machine is too busy."
            )
        told = (box.said["told"] or box.said["stderr"]).decode("utf-8", "replace").strip()
        raise SandboxError(f"a box could not be confined: {told[-300:] or 'it ended without a word'}.")


def _attend(
    waiting: selectors.BaseSelector, boxes: Sequence[Started], limits: Limits, until: Started | None
) -> None:
    """Gives and takes until the last box has ended or is over its limits."""
    running, over = list(boxes), False
    while running:
        now = time.monotonic()
        for box in list(running):
            box.over = box.over or _limit_reached(box, now, limits)
            if box.over:
                running.remove(box)
                _kill(box)
                over = over or box is until
        for key, _ in waiting.select(0.05):
            if key.fd == key.data.alive:
                _ended(waiting, key.data, limits)
                running = [box for box in running if box is not key.data]
                over = over or key.data is until
            elif key.data.ends.get(key.fd) in ("job", "stdin"):
                _give(waiting, key.data, key.fd)
            elif key.fd in key.data.ends:
                _take(waiting, key.data, key.fd, limits)
        if over and all(
            map(_is_ready, running)
        ):  # one that is not yet confined has failed, or will be at once
            return


def _ended(waiting: selectors.BaseSelector, box: Started, limits: Limits) -> None:
    """Reads what a program that has ended left in its pipes, and no longer: another one may hold their other ends."""
    waiting.unregister(box.alive)
    for descriptor in [d for d, name in box.ends.items() if name not in ("job", "stdin")]:
        _take(waiting, box, descriptor, limits)


def _is_ready(box: Started) -> bool:
    """Whether it has said that it is confined."""
    return bytes(box.said["told"]) == b"ready"


def _is_late(box: Started, now: float, limits: Limits) -> bool:
    return now - box.began > (limits.wall_seconds if _is_ready(box) else SETUP_SECONDS)


def _limit_reached(box: Started, now: float, limits: Limits) -> Status | None:
    """The limit that it is over, of those that the kernel does not watch."""
    if _is_late(box, now, limits):
        return "wall"
    if box.watch is None or not box.watch.is_due(now):
        return None
    used = box.watch.used()
    if used.memory > limits.memory_mib << 20:
        return "memory"
    return "cpu" if used.cpu_seconds > limits.cpu_seconds else None


def _give(waiting: selectors.BaseSelector, box: Started, descriptor: int) -> None:
    """Writes what the pipe takes; closes it when all is written or nobody reads."""
    name = box.ends[descriptor]
    left = box.job if name == "job" else box.stdin
    try:
        written = os.write(descriptor, left[: 1 << 16]) if left else 0
    except BlockingIOError:
        return
    except OSError:
        written = len(left)
    left = left[written:]
    if name == "job":
        box.job = left
    else:
        box.stdin = left
    if not left:
        waiting.unregister(descriptor)
        _close(box, descriptor)


def _take(waiting: selectors.BaseSelector, box: Started, descriptor: int, limits: Limits) -> None:
    """Reads what is there and keeps it up to the limit: an endless text takes no memory of ours."""
    name, most = box.ends[descriptor], limits.output_kib << 10
    for _ in range(64):
        try:
            part = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        if not part:
            with suppress(KeyError):
                waiting.unregister(descriptor)
            _close(box, descriptor)
            return
        box.said[name] += part[: max(0, most - len(box.said[name]))]
        if len(box.said[name]) >= most and name != "stderr":
            box.over = "output"
            return


def _close(box: Started, descriptor: int) -> None:
    del box.ends[descriptor]
    for stream in (box.process.stdin, box.process.stdout, box.process.stderr):
        if stream is not None and not stream.closed and stream.fileno() == descriptor:
            with suppress(OSError):
                stream.close()
            return
    os.close(descriptor)


def _end(box: Started) -> None:
    """Ends what is left of a box, waits for it, and says what became of it."""
    _kill(box)
    _, code, usage = os.wait4(box.process.pid, 0)
    box.process.returncode = os.waitstatus_to_exitcode(code)
    for descriptor in list(box.ends):
        _close(box, descriptor)
    os.close(box.alive)
    if box.place >= 0:
        os.close(box.place)
    cpu = max(usage.ru_utime + usage.ru_stime, box.watch.cpu_seconds if box.watch else 0.0)
    box.outcome = _outcome(box, box.process.returncode, cpu)


def _kill(box: Started) -> None:
    """Kills the program; bubblewrap, which waits for it, then ends by itself, so that the dead program is left to nobody else."""
    ended = selectors.DefaultSelector()
    with ended:
        ended.register(box.alive, selectors.EVENT_READ)
        pid = box.process.pid
        if box.whole_group:
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        if ended.select(0):
            return
        with suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
                ended.select(1.0)
        if not ended.select(0):
            os.kill(pid, signal.SIGKILL)


def _outcome(box: Started, code: int, cpu: float) -> Outcome:
    out, err = (box.said[name].decode("utf-8", "replace") for name in ("stdout", "stderr"))
    number = -code if code < 0 else code - 128 if code > 128 else 0
    status: Status = box.over or ("ended" if code == 0 else "failed")
    told = f"exit code {code}"
    if status == "failed" and number:
        with suppress(ValueError):
            told = signal.Signals(number).name
        if number in (signal.SIGKILL, signal.SIGXCPU):
            status = "cpu" if cpu >= CPU_SHARE * box.cpu_seconds else "killed"
    why = {
        "wall": "its time was up",
        "cpu": "its processor time was up",
        "output": "it wrote too much",
        "memory": "its processes took too much memory",
    }
    return Outcome(status, out, err, why.get(status, told), cpu)
