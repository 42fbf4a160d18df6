"""A run inside of a program that goes on afterwards: one at a time, leaving the process as it was, its errors exceptions."""

from __future__ import annotations

import functools
import gc
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from lightrft.utils.failures import is_explained
from lightrft.utils.inline import held

P = ParamSpec("P")
T = TypeVar("T")
_GOING_ON = threading.Lock()
MARKS = re.compile(r"[\^~]+")
"""A line of a traceback that points into the one above it."""


def one_line(function: Callable[P, T]) -> Callable[P, T]:
    """The function, whose errors that explain themselves are one line, without the frames of this package (LIGHTRFT_TRACEBACK=1 shows
    them); never SystemExit."""

    @functools.wraps(function)
    def called(*args: P.args, **keywords: P.kwargs) -> T:
        try:
            return function(*args, **keywords)
        except SystemExit as stop:
            raise RuntimeError(f"the run ended with status {stop.code}; its log.txt says why.") from None
        except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
            if not is_explained(error):
                raise
            if len(error.args) == 1 and isinstance(error.args[0], str):
                lines = [line.strip() for line in error.args[0].splitlines()]
                error.args = (" ".join(line for line in lines if not MARKS.fullmatch(line)),)
            raise error.with_traceback(None) from None

    return called


def as_guest(work: Callable[[], T], objects: Mapping[str, Any] = MappingProxyType({})) -> T:
    """What `work`, a run or an evaluation whose settings name `objects`, gives. It may seed, set threads and log as in a process of its own; afterwards all that is as
    before. RuntimeError if another run goes on in this process."""
    if not _GOING_ON.acquire(blocking=False):
        raise RuntimeError(
            "another run goes on in this process, and both would use the same random generators and devices. Wait for it, or start this one "
            "as a process of its own: lightrft train ..."
        )
    try:
        with _restored(), held(objects):
            return work()
    finally:
        _GOING_ON.release()
        gc.collect()  # models of the run, before the next one loads its own


@contextmanager
def _restored() -> Iterator[None]:
    """The state of the whole process that a run changes: generators, threads, precision, levels of logs, bars."""
    # Not above: a mistake in the arguments is told without them.
    import torch
    from transformers.utils import logging as transformers_logging

    from lightrft.utils.seeding import generator_states, restore_generators

    log = logging.getLogger("lightrft")
    generators, threads, level = generator_states(), torch.get_num_threads(), log.level
    precision, bars = torch.get_float32_matmul_precision(), transformers_logging.is_progress_bar_enabled()
    try:
        yield
    finally:
        restore_generators(generators)
        log.setLevel(level)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        if bars:
            transformers_logging.enable_progress_bar()
