"""A process that ends with the one that started it, even by SIGKILL, and whatever it is busy with at that moment."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PARENT = "LIGHTRFT_PARENT"
"""Environment variable: the number of the process that started this one and without which it must not go on."""
SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def end_with_parent(parent: int | None) -> None:
    """From now on this process is killed when its parent ends; at once where `parent` is gone already.

    On Linux by the kernel, which needs nothing of this process: not even the lock of Python, that a regular expression may
    hold for ever. The kernel looks at the *thread* that started this process, so that thread must live as long as its process.
    Elsewhere a thread looks once a second. parent: its number; None: not known, whoever it is now.
    """
    expected = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, int(signal.SIGKILL))
    else:
        threading.Thread(target=_look_for, args=(expected,), name="parent", daemon=True).start()
    if os.getppid() != expected:
        os._exit(1)


def end_with_launcher() -> None:
    """Ends with its launcher: a process of a run that torch's launcher, ours or torchrun, has started; nothing for others."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        number = os.environ.pop(PARENT, "")
        end_with_parent(int(number) if number else None)


def _look_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def end_with_descendants(pid: int) -> None:
    """Kills the session that a process of ours leads, and its descendants in sessions of their own, which would outlive it (Linux)."""
    os.killpg(pid, signal.SIGSTOP)  # so that none is added meanwhile
    below = _descendants(pid)
    os.killpg(pid, signal.SIGKILL)
    for one in below:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found, left = list[int](), [pid]
    while left:
        with suppress(OSError):  # it has just ended, or this system does not tell
            for told in Path(f"/proc/{left.pop()}/task").glob("*/children"):
                left += map(int, told.read_text().split())
                found += left
    return list(dict.fromkeys(found))
