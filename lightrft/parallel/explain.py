"""Collectives that say where they failed: who waited, for what, and which ranks did not come.

Every collective is known by its place in the program. One that fails or takes longer than `strategy.timeout_seconds` raises
PeerError: it names this rank, the collective, phase and step, and the ranks that did not come with where they are instead.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from lightrft.parallel.status import STATUS
from lightrft.parallel.watch import BrokenError, PeerError, Watch

PATIENCE_SECONDS = 4.0
"""After a failed exchange: time in which the rank that is to blame may still say why."""
BACKENDS = ("lightrft.strategy.", "lightrft.engines.", "lightrft.parallel.")
"""Modules that stand between a collective and whoever wanted it."""


@contextmanager
def collective(name: str, rank: int) -> Iterator[None]:
    """Inside, ranks meet in the method `name` of the world. BrokenError, with what is known of the others, if that fails."""
    call, start = f"world.{name} ({_place()})", time.monotonic()
    STATUS.enter_collective(call)
    try:
        yield
    except RuntimeError as error:
        waited = time.monotonic() - start
        raise BrokenError(_missed(rank, call, waited, str(error))) from error
    finally:
        STATUS.exit_collective(time.monotonic() - start)


def _missed(rank: int, call: str, waited: float, error: str) -> str:
    """What to say of an exchange that failed: the cause, if another rank has told one; else who did not come."""
    watch = STATUS.watch
    here = f"rank {rank} waited {waited:.0f} s in {call}, phase {STATUS.phase}, step {STATUS.step}"
    if watch is None:
        return f"{here}: {error}"
    reason = _reason(watch, in_time=waited < watch.timeout_seconds)
    return f"{here}: {reason or f'the connection failed ({error.splitlines()[0]}). {watch.others()}'}"


def _reason(watch: Watch, *, in_time: bool) -> str:
    """Why an exchange failed, from what other ranks have told; empty if there is no telling.

    `in_time`: it did not take too long, so a connection broke; then the rank that is to blame may need a moment to say why.
    """
    watch.failing = True
    if cause := watch.cause(PATIENCE_SECONDS if in_time else 0):
        return str(cause["message"]).removeprefix("lightrft: ")
    others = {rank: word for rank, word in watch.whereabouts().items() if rank != watch.rank}
    late = {rank: word for rank, word in others.items() if word["calls"] < STATUS.calls}
    # One that was stopped inside a collective of the backend has made as many calls of ours as we have.
    silent = watch.silent() & others.keys()
    if in_time or not (late or silent):
        return ""
    # Those who wait themselves are late only because of another.
    blamed = silent or {rank for rank, word in late.items() if not word["call"]} or set(late)
    where = "; ".join(
        f"rank {rank} did not come, it is in {others[rank]['where']}{' and gives no sign' if rank in silent else ''}"
        for rank in sorted(blamed)
    )
    return (
        f"{where}. Its stack is in RUN/logs. "
        f"If it only needs longer, raise strategy.timeout_seconds={watch.timeout_seconds:g}."
    )


def understood(watch: Watch, error: Exception) -> Exception:
    """The error, or one that says where everybody is, if it came from a collective of the backend."""
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    if not _is_of_backend(error, modules):
        return error
    callers = [
        at
        for at, name in zip(frames, modules, strict=True)
        if name.startswith("lightrft.") and not name.startswith(BACKENDS)
    ]
    frame, line = (callers or frames)[-1]
    first = str(error).splitlines()[0]
    reason = _reason(watch, in_time="imed out" not in first)
    try:
        raise PeerError(
            f"rank {watch.rank} failed in a collective of the backend ({_at(frame, line)}), phase {STATUS.phase}, step {STATUS.step}: "
            f"{reason or f'{first}. {watch.others()}Stacks are in RUN/logs.'}"
        ) from error
    except PeerError as explained:
        return explained


def with_cause(error: BaseException | None) -> BaseException | None:
    """The error as people are to be told it: `understood` where this process is one of several."""
    return (
        understood(STATUS.watch, error)
        if STATUS.watch is not None and isinstance(error, Exception)
        else error
    )


def _is_of_backend(error: Exception, modules: list[str]) -> bool:
    """Whether an error came out of a collective of the backend: functional ones end in other rooms of torch (torch._ops)."""
    if isinstance(error, dist.DistError):
        return True
    is_plain = isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError)
    return (
        is_plain
        and modules[-1].startswith("torch.")
        and any(m.startswith("torch.distributed") for m in modules)
    )


def _place() -> str:
    """Where in the program the present exchange was asked for: the first frame outside this room."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_of_this_room(str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    return _at(frame, frame.f_lineno)


def _is_of_this_room(module: str) -> bool:
    return module == "contextlib" or module.startswith("lightrft.parallel.")


def _at(frame: FrameType, line: int) -> str:
    file = Path(frame.f_code.co_filename)
    return f"{file.parent.name}/{file.name}:{line}, in {frame.f_code.co_name}"
