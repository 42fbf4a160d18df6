"""Files and folders that are there whole or not at all, and errors of a full or closed disk that name the cure.

What is not finished lies beside its place under a name that begins with `.tmp-`; what is being replaced is called
`.old-` for a moment. A killed process leaves such names behind; `recover` clears them away.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_UNFINISHED, _REPLACED = ".tmp-", ".old-"
_SPACE = "Delete files there, or choose another disk with --run; fewer and smaller checkpoints: checkpoint.keep_last, checkpoint.every_steps."
_RIGHTS = "Make it writable for this user, or choose another place with --run."
_TROUBLE = {
    errno.ENOSPC: ("the disk is full", _SPACE),
    errno.EDQUOT: ("the disk quota is used up", _SPACE),
    errno.EFBIG: (
        "a file grew over the limit of this process or file system",
        "Raise it (`ulimit -f`), or choose another place with --run.",
    ),
    errno.EACCES: ("permission denied", _RIGHTS),
    errno.EPERM: ("not permitted", _RIGHTS),
    errno.EEXIST: ("there is a file of this name", "Choose another place with --run."),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "Choose another place with --run."),
    errno.EROFS: ("the file system is read-only", _RIGHTS),
}


def write_text(path: Path, text: str, *, lasts: bool = True) -> None:
    """Puts `text` (UTF-8) into the file `path`, as `write_bytes` does."""
    write_bytes(path, text.encode(), lasts=lasts)


def write_bytes(path: Path, data: bytes, *, lasts: bool = True) -> None:
    """Puts `data` into the file `path`; a reader sees the old content or the new, never a part.

    Makes the folders above it. `lasts`: waits until it is on the disk, so that it outlives the machine's fall. RuntimeError if the
    disk is full or not writable.
    """
    temporary = _temporary(path)
    try:
        with explained(path.parent):
            _make(path.parent)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                if lasts:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if lasts:
                _sync(path.parent)
    except BaseException:
        with suppress(OSError):  # the first error says more
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A new empty folder to fill; it gets the name `path` when the block ends, and vanishes if the block raises.

    A folder that has the name already is replaced only then, and what killed processes left of it vanishes now. RuntimeError if
    the disk is full or not writable.
    """
    temporary = _temporary(path)
    try:
        with explained(path.parent), ExitStack() as stack:
            for left in path.parent.glob(f"{_UNFINISHED}{glob.escape(path.name)}-*"):
                _remove_left(left)
            if temporary.exists():  # of a killed process with our number, where there are no locks
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            stack.callback(os.close, _held(temporary))
            yield temporary
            _sync_all(temporary)
            _put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _held(unfinished: Path) -> int:
    """A descriptor that holds the folder as long as this process fills it; where the file system has locks."""
    descriptor = os.open(unfinished, os.O_RDONLY)
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_left(unfinished: Path) -> None:
    """Removes a folder that no process fills any more; one of which that cannot be told stays."""
    if not unfinished.is_dir():
        return
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    else:
        shutil.rmtree(unfinished)
    finally:
        os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Removes a folder so that it is there whole or not at all, even if the process is killed meanwhile."""
    with explained(path.parent):
        doomed = _temporary(path)
        path.rename(doomed)
        shutil.rmtree(doomed)


def recover(parent: Path) -> None:
    """Clears away what killed processes left unfinished in `parent`. Only for the process that writes there."""
    with explained(parent):
        for replaced in parent.glob(f"{_REPLACED}*"):
            final = parent / replaced.name.removeprefix(_REPLACED)
            if final.exists():
                shutil.rmtree(replaced)
            else:  # killed between the two renames of _put_in_place
                replaced.rename(final)
        for unfinished in parent.glob(f"{_UNFINISHED}*"):
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            else:
                unfinished.unlink()


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turns errors of a full or closed disk into a RuntimeError that names `place`, the space left and the cure."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in _TROUBLE:
            raise
        what, cure = _TROUBLE[number]
        raise RuntimeError(
            f"cannot write in {place}: {what} ({_free_mib(place):.1f} MiB free). {cure} "
            "What was complete before is untouched, as is the last complete checkpoint if there is one."
        ) from error


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, if they are not there. RuntimeError if they cannot be made."""
    with explained(path):
        _make(path)


def _make(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # /proc and its like say so of a folder that they will not hold
        raise RuntimeError(
            f"cannot write in {parent}: no folder can be made there. Choose another place with --run."
        ) from None


def _errno(error: Exception) -> int:
    """The system's error number; libraries written in Rust (safetensors) only have it in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else 0


def _free_mib(place: Path) -> float:
    existing = next(p for p in (place, *place.absolute().parents) if os.path.exists(p))
    return shutil.disk_usage(existing).free / 2**20


def _temporary(path: Path) -> Path:
    """A name beside `path` that no other live process uses."""
    return path.with_name(f"{_UNFINISHED}{path.name}-{os.getpid()}")


def _put_in_place(temporary: Path, path: Path) -> None:
    replaced = path.with_name(_REPLACED + path.name)
    if path.exists():  # a rename cannot replace a folder that is not empty
        path.rename(replaced)
    temporary.rename(path)
    _sync(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync_all(top: Path) -> None:
    """Waits until every file and folder under `top` is on the disk: a rename must not get there before its content."""
    for place, _, files in os.walk(top):
        for name in files:
            _sync(Path(place, name))
        _sync(Path(place))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
