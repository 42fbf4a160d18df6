"""Places among the processes that programs of the policy may have on one machine, whichever ranks and runs of a user start them.

A place is a lock on some bytes of a file: the kernel gives it back when its holder closes the file or dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import time
from pathlib import Path

from lightrft.sandbox.lifetime import Limits, SandboxError

AGAIN_SECONDS = 0.02


def place_among(limits: Limits) -> int:
    """A descriptor that holds a place for a program and its processes until it is closed; -1 where none is needed. Waits for one as long
    as the program may run. SandboxError if there is none until then."""
    if not limits.processes or not limits.machine_processes:
        return -1
    count, end = limits.processes + 1, time.monotonic() + limits.wall_seconds
    file = opened()
    try:
        while not _taken(file, count, limits.machine_processes):
            if time.monotonic() > end:
                raise SandboxError(
                    f"sandbox.machine_processes={limits.machine_processes} are in use by other programs on this machine, and {count} did not "
                    f"become free in {limits.wall_seconds:g} seconds. Set it higher, sandbox.processes lower, or use fewer workers."
                )
            time.sleep(AGAIN_SECONDS)
    except BaseException:
        os.close(file)
        raise
    return file


def opened() -> int:
    """The file of this user, opened anew. SandboxError where somebody else's lies in its place."""
    path = Path(tempfile.gettempdir()) / f"lightrft-processes-{os.getuid()}"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SandboxError(
            f"the processes of this machine are counted by locks on {path}, which cannot be opened: {error.strerror}. Set TMPDIR to a folder "
            "that you may write in."
        ) from None
    if os.fstat(file).st_uid != os.getuid():
        os.close(file)
        raise SandboxError(f"{path} belongs to somebody else. Set TMPDIR to a folder of your own.")
    return file


def _taken(file: int, count: int, most: int) -> bool:
    """Whether so many bytes that follow one another were free below `most`, and are held now."""
    return any(_locked(file, first, count) for first in range(0, most - count + 1, count))


def _locked(file: int, first: int, count: int) -> bool:
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, count, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, wanted)
    except (BlockingIOError, PermissionError):
        return False
    return True
