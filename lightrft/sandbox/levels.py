"""The boxes that this machine can make, found out by making one and trying to leave it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

from lightrft.sandbox.box import Box, Kind
from lightrft.sandbox.lifetime import Limits, SandboxError
from lightrft.utils.paths import expanded

LEVELS: dict[Kind, str] = {"bubblewrap": "bubblewrap + seccomp", "landlock": "Landlock + seccomp + rlimits"}
"""Levels that hold a hostile program, the better one first."""
PROBE = """
import os, socket
for leave in (os.fork, lambda: socket.socket(socket.AF_INET), lambda: os.kill(os.getppid() or 2, 0), lambda: open('/etc/passwd'),
              lambda: open('/etc/new', 'w'), lambda: os.chmod('/', 0o755)):
    try:
        leave()
    except OSError:
        continue
    print('out')
for name in ('/no/socket', chr(0) + 'none'):
    try:
        socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'', name)
        print('out')
    except PermissionError:
        continue
    except OSError:  # it looked for the name, and could have found it
        print('out')
print('confined')
"""
FORKS = """
import os, socket, time
for leave in (lambda: socket.socket(socket.AF_INET), lambda: open('/etc/passwd'), lambda: open('/usr/new', 'w'), lambda: os.chmod('/', 0o755)):
    try:
        leave()
    except OSError:
        continue
    print('out')
started = 0
try:
    while True:
        if not os.fork():
            time.sleep(30)
            os._exit(0)
        started += 1
except OSError:
    print(started)
"""
"""Starts as many processes as it may, which the box then ends."""
PROBE_LIMITS = Limits(cpu_seconds=10, wall_seconds=30.0)


def levels(python: str = "") -> dict[Kind, str]:
    """Level -> why it cannot be had here, empty where it can. `python`: the interpreter to try; empty: any that will do."""
    return {kind: _tried(kind, python)[1] for kind in LEVELS}


def make_box(limits: Limits, kind: str = "auto", python: str = "") -> Box:
    """A box of this kind, of the best level for `auto`. SandboxError saying why there is none."""
    if kind == "none":
        return Box(limits, "none", python or sys.executable)
    wanted = [level for level in LEVELS if kind in ("auto", level)]
    for level in wanted:
        found, _ = _tried(level, python)
        if found and limits.processes and (why := _tried_with_processes(level, found)):
            raise SandboxError(
                f"sandbox.processes={limits.processes}: programs that start processes cannot be held here: {why}. Install bubblewrap 0.8 or "
                "later and use Linux 5.14 or later, or set sandbox.processes=0."
            )
        if found:
            return Box(limits, level, found)
    reasons = "; ".join(f"{LEVELS[level]}: {_tried(level, python)[1]}" for level in wanted)
    raise SandboxError(
        f"sandbox.kind={kind}: programs of the policy cannot be run here, since no sandbox can be had ({reasons}). Install bubblewrap, use "
        "Linux 5.13 or later, set sandbox.python to an interpreter that all users can read, or write sandbox.kind=none to run them without one."
    )


@cache
def _tried(kind: Kind, python: str) -> tuple[str, str]:
    """(the interpreter that works in a box of this level, why none does)."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return "", f"it needs Linux, and this is {platform.system()}"
    if kind == "bubblewrap" and shutil.which("bwrap", path="/usr/bin:/bin") is None:
        return "", "bubblewrap is not installed"
    why = "no interpreter"
    for candidate in _interpreters(python):
        try:
            outcome = Box(PROBE_LIMITS, kind, candidate).run(PROBE)
        except (SandboxError, ValueError) as error:
            why = f"{candidate}: {error}"
            continue
        if outcome.stdout == "confined\n":
            return candidate, ""
        why = (
            f"a program in it got out: {outcome.stdout!r:.100}"
            if outcome.stdout
            else f"{outcome.why}: {outcome.stderr[-200:]}"
        )
    return "", why.rstrip(".")


@cache
def _tried_with_processes(kind: Kind, python: str) -> str:
    """Why programs of this level cannot start processes; empty where they can, as many as they may."""
    try:
        outcome = Box(replace(PROBE_LIMITS, processes=3), kind, python).run(FORKS)
    except SandboxError as error:
        return str(error).rstrip(".")
    if outcome.stdout == "3\n":
        return ""
    return f"one that may start 3 told {outcome.stdout!r:.100}, {outcome.why}: {outcome.stderr[-200:]!r}"


def _interpreters(python: str) -> list[str]:
    """Interpreters to try: the one named, or this one and those of the system. Links of a virtual environment are followed."""
    named = (
        [str(expanded(python, "sandbox.python"))]
        if python
        else [str(Path(sys.executable).resolve()), "/usr/bin/python3", "/usr/local/bin/python3"]
    )
    return [path for path in dict.fromkeys(named) if python or Path(path).exists()]
