"""SIGTERM, Ctrl-C and a closed terminal, made into an exception at the places where a run can be left without losing anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):  # noqa: N818  # no error: the run does what it was asked
    """The run was asked to stop; carries the name of the signal."""

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that left because of this signal: 143 for SIGTERM, 130 for SIGINT,
        129 for SIGHUP."""
        return 128 + signal.Signals[str(self)]


def asking_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a run to stop; SIGHUP only where it is not ignored, as `nohup` has it."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return signal.SIGTERM, signal.SIGINT
    return signal.SIGTERM, signal.SIGINT, signal.SIGHUP


class Interrupt:
    """While entered, SIGTERM, SIGINT and SIGHUP are remembered, and `check` raises Stopped. A second signal acts at once.

    A terminal that closes sends SIGHUP, often more than once, which counts as one; under `nohup` it stays ignored.

    `largest` gives the largest of a number over all processes of the run: they stop together or not at all.
    """

    def __init__(self, largest: Callable[[float], float] = lambda number: number) -> None:
        self._number = 0
        self._largest = largest
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Stopped if a signal has come to any process. Called by all of them where nothing is half done."""
        number = int(self._largest(self._number))
        if number:
            raise Stopped(signal.Signals(number).name)

    def raise_if_stopped(self) -> None:
        """Raises Stopped if a signal has come to this process. Called where it works by itself (see World.independent)."""
        if self._number:
            raise Stopped(signal.Signals(self._number).name)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in asking_signals():
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self._number and number != signal.SIGHUP:
            raise KeyboardInterrupt
        self._number = self._number or number
