"""A run folder is in use by one process at a time: an exclusive lock on RUN/.lock, which the system lets go of however its
holder ends.

On a file system without such locks (Lustre mounted without `flock`, some of FUSE), the host and the process number in the file
are all there is: a holder that lives on this machine is refused, one of another machine is only warned of.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from lightrft.runs.layout import RunFolder
from lightrft.utils.atomic import explained

log = logging.getLogger("lightrft")
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()
"""Descriptors of the locks of this process: a process that is forked from it must not hold them after its end."""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Inside, this process alone uses the folder, which must exist. ValueError naming the process that uses it already."""
    with explained(run):
        file = os.open(RunFolder(run).lock, os.O_RDWR | os.O_CREAT, 0o644)
    _held.add(file)
    try:
        _take(file, run)
        try:
            _write(file, f"{socket.gethostname()} {os.getpid()}\n")
            yield
        finally:
            _write(file, "")
    finally:
        _held.discard(file)
        os.close(file)


def _take(file: int, run: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(run, *_holder(file)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _look(run, *_holder(file))


def _look(run: Path, host: str, process: int) -> None:
    """What can be done without locks."""
    if host == socket.gethostname() and process != os.getpid() and psutil.pid_exists(process):
        raise _in_use(run, host, process)
    what = f"if process {process} on {host} still uses it, end that one" if host else "start it only once"
    log.warning("%s: this file system has no locks (flock), so nothing guards the run: %s.", run, what)


def _in_use(run: Path, host: str, process: int) -> ValueError:
    who = f"process {process} on {host}" if host else "another process"
    return ValueError(
        f"{run} is in use by {who}. Wait until it has ended, or end it; for a run beside it set run to a new folder."
    )


def _holder(file: int) -> tuple[str, int]:
    """Host and process number that the file names; no host if it names none."""
    text = os.pread(file, 1000, 0).decode(errors="replace").split()
    return (text[0], int(text[1])) if len(text) == 2 and text[1].isdecimal() else ("", 0)


def _write(file: int, text: str) -> None:
    with suppress(OSError):  # on a full disk the lock holds all the same, only its message names nobody
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)


def _forget() -> None:
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
