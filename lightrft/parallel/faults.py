"""Failures of one rank that all ranks come to know of, so that they stop together and can still save."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lightrft.parallel.explain import PATIENCE_SECONDS, understood
from lightrft.parallel.group import Group
from lightrft.parallel.status import STATUS
from lightrft.parallel.watch import BrokenError, PeerError, Watch
from lightrft.utils.failures import told
from lightrft.utils.interrupt import Stopped


@contextmanager
def independent(group: Group) -> Iterator[None]:
    """Inside, the ranks of a group work without collectives; they meet at the end, see World.independent."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if group.size == 1:
            raise
        failure = error
        _spread(error)
    if group.size > 1:
        try:
            reports = group.gather(None if failure is None else _report(failure))
        except PeerError:
            if failure is None:
                raise
            raise failure from None
        if failure is not None:
            raise failure
        for rank, report in enumerate(reports):
            if report is not None:
                raise (
                    Stopped(report[1])
                    if report[0] == "stopped"
                    else PeerError(f"rank {rank} failed: {report[1]}")
                )


def raise_if_failed() -> None:
    """Raises what was heard of other ranks: a failure, or a stop."""
    STATUS.heartbeat()
    if STATUS.watch is not None and STATUS.watch.news is not None:
        raise STATUS.watch.news


def begin_failing() -> None:
    """From here on this process handles a failure: SIGTERM, which launchers send to the others of one that died, waits until it has
    been told why."""
    if STATUS.watch is not None:
        STATUS.watch.failing = True


def can_save(group: Group, done: int, error: Exception) -> bool:
    """Whether, after this error, all ranks are here with `done` whole steps; also lets the others know of the error."""
    if group.size == 1:
        return True
    is_broken = _spread(error) or isinstance(error, BrokenError)
    return not is_broken and STATUS.watch is not None and STATUS.watch.meet(str(done))


def blame(watch: Watch, error: Exception) -> int:
    """Lets everybody know of a failure of this rank; returns the exit status."""
    message, status = told(error)
    details = "".join(traceback.format_exception(error)).rstrip()
    is_consequence = isinstance(error, PeerError) and not isinstance(error, BrokenError)
    if watch.rank and (
        watch.output is not None or not is_consequence
    ):  # without a file of its own it is heard by people
        print(details, file=sys.stderr, flush=True)
    if not (is_consequence and watch.cause(PATIENCE_SECONDS)):
        watch.blame(message, status=status, details=details)
    return status


def _spread(error: Exception) -> bool:
    """Tells the other ranks of an error; whether it was a collective of the backend that failed, so that none succeeds any more."""
    watch = STATUS.watch
    if watch is None or isinstance(error, PeerError):
        return False
    if isinstance(error, Stopped):
        watch.ask_to_stop(str(error))
        return False
    cause = understood(watch, error)
    blame(watch, cause)
    return cause is not error


def _report(error: Exception) -> tuple[str, str]:
    return ("stopped", str(error)) if isinstance(error, Stopped) else ("failed", str(error))
