"""The log of a run: everything into a file, warnings to the terminal as well."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from lightrft.utils.paths import without_home

log = logging.getLogger("lightrft")


class Written(logging.Formatter):
    """Lines of the log with ~ for the home folder: the file may be passed on."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record as the file has it."""
        return without_home(super().format(record))


class Terminal(logging.Handler):
    """Shows warnings on the terminal: above the live picture once there is one, on stderr before."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.show: Callable[[str], None] = lambda text: print(text, file=sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """Shows one formatted record."""
        self.show(self.format(record))


@contextlib.contextmanager
def logging_to(file: Path) -> Iterator[Terminal]:
    """The log of a run: everything into a file, warnings to the terminal as well."""
    written, shown = logging.FileHandler(file, encoding="utf-8"), Terminal()
    written.setFormatter(Written())
    log.setLevel(logging.INFO)
    log.addHandler(written)
    log.addHandler(shown)
    try:
        yield shown
    finally:
        log.removeHandler(written)
        log.removeHandler(shown)
        written.close()
