"""What happens in a run, while it happens and afterwards: its events, its status, and what it ran on.

Nothing here ends a run: what cannot be written is left out, with one warning. Nor is one held up, but for the few seconds that it takes
at its end to find out what a broken connection to other ranks comes from (parallel/explain.py).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psutil

from lightrft import __version__
from lightrft.runs.layout import RunFolder
from lightrft.utils.amounts import clock
from lightrft.utils.atomic import write_text
from lightrft.utils.extras import extras, installed
from lightrft.utils.failures import first_line
from lightrft.utils.interrupt import Stopped
from lightrft.utils.paths import without_home

if TYPE_CHECKING:  # a run is looked at without torch, whose import takes seconds
    from lightrft.strategy.memory import PhaseEnd

log = logging.getLogger("lightrft")

Facts = Mapping[str, Any]
EVERY_SECONDS = 1.0
"""How often the status is written while it changes."""
BEAT_SECONDS = 5.0
"""How often where it does not: whoever reads it sees that the run lives."""
SILENT_SECONDS = 60.0
"""A status that is older is that of a process that ended without a word."""
LAST_STEPS = 3
MOST_READ, MOST_RANKS = 2**18, 64
"""Bytes of a file of events, and files, that a timeline reads."""
CORE = ("torch", "transformers", "peft", "datasets", "safetensors")


class Events:
    """The events of one rank, a JSON object for each: `time` (seconds since 1970), `event`, `step`, and what belongs to it."""

    def __init__(self, file: Path) -> None:
        """Goes on with a file that is there."""
        self._file, self._failed = file, False
        self._lock = threading.Lock()

    def add(self, event: str, step: int, **facts: Any) -> None:
        """Writes down an event of now."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, "step": step, **facts})
        try:
            with self._lock:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
        except OSError as error:
            if not self._failed:
                log.warning("events are not written: %s", error.strerror or error)
            self._failed = True

    def phase(self, step: int, end: PhaseEnd) -> None:
        """Writes down a phase that has ended: how long it took, the part of it that waited for other ranks, what was moved for it, and
        bytes of device memory before and after that and at most."""
        held = {
            "before_bytes": end.before_bytes,
            "after_bytes": end.after_bytes,
            "peak_bytes": end.peak_bytes,
        }
        self.add(
            "phase", step,
            phase=end.phase.value, seconds=round(end.seconds, 4), waited=round(end.waited, 4), moved=list(end.moved),
            **{name: value for name, value in held.items() if value},
        )  # fmt: skip


class Status:
    """RUN/status.json, which a thread keeps up to date until the block ends.

    `state`: running, finished, stopped, failed; with `why`, `time`, `pid` and `host`, and the `facts` of the moment.
    """

    def __init__(self, file: Path, facts: Callable[[], Facts]) -> None:
        self._file, self._facts, self._failed = file, facts, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="status")

    def __enter__(self) -> Status:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            self._write({**self._facts(), "state": "finished"})
        else:
            # Needs torch, which whoever looks at a run need not wait for.
            from lightrft.parallel.explain import with_cause

            state = "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
            why = without_home(first_line(with_cause(error) or error))
            self._write({**self._facts(), "state": state, "why": why})

    def _keep(self) -> None:
        last: Facts = {}
        written = -BEAT_SECONDS
        while not self._over.is_set():
            now = dict(self._facts())
            if now != last or time.monotonic() - written >= BEAT_SECONDS:
                self._write({**now, "state": "running"})
                last, written = now, time.monotonic()
            self._over.wait(EVERY_SECONDS)

    def _write(self, said: Facts) -> None:
        """Replaces the file; not worth waiting for the disk."""
        whole = {**said, "time": round(time.time(), 3), "pid": os.getpid(), "host": socket.gethostname()}
        try:
            write_text(self._file, json.dumps(whole) + "\n", lasts=False)
        except (OSError, RuntimeError) as error:
            if not self._failed:
                log.warning("%s is not written: %s", self._file.name, error)
            self._failed = True


def status(run: Path) -> dict[str, Any]:
    """What a run does now, or how it ended; `state` is ended for one whose process is gone without a word (killed, say). Empty for a run
    of a version that did not say."""
    try:
        found = json.loads(RunFolder(run).status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    if found.get("state") == "running" and not _lives(found):
        found["state"] = "ended"
    return found


def _lives(said: Facts) -> bool:
    if time.time() - float(said.get("time", 0)) > SILENT_SECONDS:
        return False
    return said.get("host") != socket.gethostname() or psutil.pid_exists(int(said.get("pid", 0)))


def described(said: Facts) -> str:
    """A status in one line; empty where nothing is known."""
    if not said:
        return ""
    place = f"{said.get('phase') or 'start'} of step {said.get('step', 0)} of {said.get('steps', 0)}"
    done = f"after step {said.get('done', 0)} of {said.get('steps', 0)}"
    if said["state"] == "running":
        answered, expected = said.get("responses") or (0, 0)
        counted = f", {answered} of {expected} responses" if expected else ""
        left = said.get("seconds_left")
        return f"running: {place}{counted}" + (f", {clock(left)} left" if left else "")
    if said["state"] == "ended":
        return f"ended without a word in {place} (killed?)"
    why = f": {said['why']}" if said.get("why") else ""
    return f"{said['state']} {done}{why}"


def timeline(run: Path, steps: int = LAST_STEPS) -> list[dict[str, Any]]:
    """The phases of the last steps, of the first ranks: `rank`, `step`, `phase`, `start` (seconds since the first of them), `seconds`,
    `waited`, `moved`, bytes of device memory, and `beside` where it went on in a thread beside the other phases. Empty for a run of a version that did not say."""
    found = []
    for rank, file in islice(RunFolder(run).all_events.items(), MOST_RANKS):
        mine = [event for event in _last(file) if event.get("event") == "phase"]
        wanted = sorted({event["step"] for event in mine})[-steps:]
        found += [
            {**event, "rank": rank, "start": event["time"] - event["seconds"]}
            for event in mine
            if event["step"] in wanted
        ]
    first = min((event["start"] for event in found), default=0.0)
    return [{**event, "start": round(event["start"] - first, 3)} for event in found]


def _last(file: Path) -> list[dict[str, Any]]:
    """The last events of a file, from the last start on: those of before it may be of steps that were taken again. Where no phase has come
    since, those of before it of the steps that were done then."""
    with file.open("rb") as read:
        size = read.seek(0, os.SEEK_END)
        read.seek(max(0, size - MOST_READ))
        lines = read.read().split(b"\n")[1 if size > MOST_READ else 0 :]
    before: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for line in lines:
        with suppress(ValueError):  # cut while it was written
            event = json.loads(line)
            if event["event"] != "start":
                events.append(event)
                continue
            done = event.get("step", 0)
            before, kept = ([one for one in some if one.get("step", 0) <= done] for some in (before, events))
            before, events = kept if _has_phase(kept) else before, []
    return events if _has_phase(events) else [*before, *events]


def _has_phase(events: list[dict[str, Any]]) -> bool:
    return any(event["event"] == "phase" for event in events)


def note_environment(run: Path, processes: int) -> None:
    """Adds this start to RUN/environment.json: versions, command, commit, system and devices. The home folder is written as ~."""
    file = RunFolder(run).environment
    starts: list[Any] = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        starts = list(json.loads(file.read_text(encoding="utf-8"))["starts"])
    try:
        write_text(file, json.dumps({"starts": [*starts, _environment(processes)]}, indent=2))
    except (OSError, RuntimeError) as error:
        log.warning("%s is not written: %s", file.name, error)


def _environment(processes: int) -> dict[str, Any]:
    from lightrft.utils.device import accelerators  # not above: it imports torch

    optional = {requirement.name for needed in extras().values() for requirement in needed}
    versions = {name: installed(name) for name in (*CORE, *sorted(optional - set(CORE)))}
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": without_home(command),
        "processes": processes,
        "lightrft": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "devices": accelerators(),
    }


def _commit() -> str:
    """The commit of the checkout that this package runs from; empty where it is none."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return ""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
