"""A function of a user's that looks at each step (log.on_step). It can change nothing of the run, and its failures stop nothing."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

from lightrft.parallel.status import STATUS
from lightrft.runs.reader import Run
from lightrft.utils.imports import resolve
from lightrft.utils.seeding import generator_states, restore_generators

log = logging.getLogger("lightrft")
Hook = Callable[[int, Mapping[str, float], Run], object]
"""(step, its metrics, the run as it is on the disk); what it returns is dropped."""


def found_hook(name: str) -> Hook:
    """The function that log.on_step names. ValueError if there is none, or if it cannot be called with three arguments."""
    hook: Hook = resolve({}, name, "log.on_step")
    if not callable(hook):
        raise ValueError(
            f"log.on_step={name}: a {type(hook).__name__} is no function. Write one that takes step, metrics and run."
        )
    try:
        inspect.signature(hook).bind(0, {}, None)
    except TypeError as error:
        raise ValueError(
            f"log.on_step={name}: it is called as {name.rpartition(':')[2]}(step, metrics, run), and {error}."
        ) from None
    except ValueError:  # a function of C without a signature
        pass
    return hook


class StepHook:
    """The hook of a run, on its first rank; a context manager that says at the end how often it failed.

    It is called when a step is written down, in the thread of the run, whose time it takes. The random generators of the process are
    afterwards as before, so that a hook that draws numbers changes no response.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.calls, self.failed = 0, 0
        self._hook = found_hook(name)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        """Has the function look at a step. What it raises is counted, and told once."""
        self.calls += 1
        phase, generators = STATUS.phase, generator_states()
        STATUS.set_phase("log.on_step")  # so that one that hangs is named when the run gives up
        try:
            self._hook(step, MappingProxyType(dict(metrics)), Run(self.folder))
        except KeyboardInterrupt:  # a user's second Ctrl-C
            raise
        except (
            BaseException
        ) as error:  # whatever a user's function raises; asyncio's CancelledError is no Exception
            self._fail(step, error)
        finally:
            restore_generators(generators)
            STATUS.set_phase(phase)

    def _fail(self, step: int, error: BaseException) -> None:
        self.failed += 1
        if self.failed == 1:
            told = str(error).strip().split("\n")[0]
            log.warning(
                "log.on_step=%s: failed at step %d (%s: %s); the run goes on, and further failures are counted",
                self.name, step, type(error).__name__, told,
            )  # fmt: skip
            log.info("log.on_step=%s", self.name, exc_info=error)

    def __enter__(self) -> StepHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.failed:
            log.warning("log.on_step=%s: %d of %d calls failed", self.name, self.failed, self.calls)
