"""What is printed, guarded: a terminal, pipe or file that takes no more text ends no program.

`main` puts these in the places of sys.stdout and sys.stderr, through which everything is printed: print, rich and logging.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

log = logging.getLogger("lightrft")


class Guarded:
    """A stream of text that never fails: characters it cannot show become ?, and when it can be written to no more, the log says
    so once and what comes after is lost."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: Exception | None = None
        """Why it can be written to no more; None while it can."""

    def write(self, text: str) -> int:
        """Writes, if that is possible."""
        try:
            self.stream.write(text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            self.write(text.encode(encoding, "replace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: a file that someone has closed
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Lets what was written out, if that is possible."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def writelines(self, lines: list[str]) -> None:
        """Writes one after the other."""
        for line in lines:
            self.write(line)

    @property
    def is_cut(self) -> bool:
        """Whether text was lost that someone waits for: not where a reader has left, but where a disk is full."""
        return self.lost is not None and not isinstance(self.lost, BrokenPipeError)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _lose(self, error: Exception) -> None:
        """From now on everything goes to nowhere: also what the stream still holds, at whose flush Python would end with 120."""
        if isinstance(
            error, BlockingIOError
        ):  # another program has set the terminal so that it takes no more than fits
            with suppress(OSError):
                os.set_blocking(self.stream.fileno(), True)
                self.stream.flush()
                return
        if self.lost is not None:
            return
        self.lost = error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            self.stream.flush()
        if log.hasHandlers():  # of a run; else logging itself would print it
            log.warning(
                "nothing more is printed (%s); the run goes on, and its log and metrics are in its folder",
                error,
            )


def guarded(stream: TextIO) -> TextIO:
    """The stream, so that writing to it never fails."""
    return cast(TextIO, Guarded(stream))  # all that a TextIO is asked for


@contextmanager
def guarded_output() -> Iterator[tuple[Guarded, Guarded]]:
    """Inside, sys.stdout and sys.stderr are guarded; gives both."""
    for descriptor in (0, 1, 2):  # a closed one would be the next file's number, and that file's end
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    nowhere = None if sys.stdout and sys.stderr else open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    out, err = (Guarded(stream if stream is not None else nowhere) for stream in before)  # type: ignore[arg-type]  # None in a process without
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)  # all that a TextIO is asked for
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
