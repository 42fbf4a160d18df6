"""How an exception is told: in one line if it explains itself, else with its traceback."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from lightrft.utils.atomic import write_text

VERDICTS = "LIGHTRFT_VERDICTS"
"""Environment variable: the folder in which processes tell the one that launched them how they ended, if one did."""
MOST_PLACES = 20
EXPLAINED = (ValueError, RuntimeError, FloatingPointError, OSError)


def is_explained(error: BaseException) -> bool:
    """Whether the message of an exception says all a user needs: it comes from a `raise` in LightRFT itself."""
    if os.environ.get("LIGHTRFT_TRACEBACK"):
        return False
    return isinstance(error, EXPLAINED) and _raised_by_us(error.__traceback__)


def told(error: BaseException) -> tuple[str, int]:
    """What to print of an exception that ends a command, and the exit status."""
    if is_explained(error):
        return f"lightrft: {error}", 2
    return "".join(traceback.format_exception(error)).rstrip(), 1


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its kind where it says nothing, or its text cannot be made."""
    try:
        lines = str(error).splitlines()
    except Exception:  # a class of strangers
        lines = []
    return next((line for line in lines if line.strip()), type(error).__name__)


def without_message(error: BaseException) -> str:
    """The kind of an exception and the lines of files that it came through, at most MOST_PLACES: what a log may have of it where its message
    may hold the words of strangers, as may the names in code and classes that were made of such words, which are left out."""
    known = (kind.__name__ for kind in type(error).__mro__ if _is_of_a_module(kind))
    steps = traceback.extract_tb(error.__traceback__, limit=-MOST_PLACES)
    places = [
        f'  File "{s.filename}", line {s.lineno}, in {s.name}' for s in steps if Path(s.filename).is_file()
    ]
    return "\n".join([next(known), *places])


def _is_of_a_module(kind: type) -> bool:
    return getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind


def tell(message: str, *, status: int, details: str, log: Path | None, to: TextIO) -> None:
    """Tells why a run of several processes failed: on the terminal (through the launcher, if ours) and in its log."""
    if log is not None:
        # A full disk must not hide the message that says so.
        with suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR {details}\n")
    if not leave_verdict({"message": message, "status": status}):
        print(message, file=to, flush=True)


def leave_verdict(verdict: dict[str, str | int]) -> bool:
    """Tells our launcher how this attempt at the run ended; False if no launcher of ours has started this process."""
    folder = os.environ.get(VERDICTS)
    if not folder:
        return False
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    write_text(Path(folder, f"{attempt}.json"), json.dumps(verdict))
    return True


def _raised_by_us(trace: TracebackType | None) -> bool:
    module = ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    return module.split(".")[0] == "lightrft"
