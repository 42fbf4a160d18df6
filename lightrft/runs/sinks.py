"""Where the metrics of a run and a sample of its groups go besides the run folder. None of it can stop a run, or hold it up."""

from __future__ import annotations

import importlib.util
import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from lightrft.runs.trackers import Mlflow, Opened, Row, Swanlab, TensorBoard, Trackio, Wandb
from lightrft.utils.extras import install_command
from lightrft.utils.imports import resolve

log = logging.getLogger("lightrft")
MOST_WAITING = 1000
"""Writes that wait for a slow sink; further ones are left out, and counted."""
LAST_SECONDS = 60.0
"""Longest that the end of a run waits for a sink to write what waits."""


class Sink(Protocol):
    """What metrics and groups can be written to; called in a thread of its own, so that it may take its time."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step, all finite; of an evaluation as well, with the step after which it was."""
        ...

    def groups(self, step: int, rows: Sequence[Row]) -> None:
        """Takes a sample of a step's groups, a dict for each response."""
        ...

    def close(self) -> None:
        """Writes what is not written yet; nothing comes afterwards."""
        ...


SINKS: dict[str, Callable[[Opened], Sink]] = {
    "mlflow": Mlflow,
    "swanlab": Swanlab,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


class Outlet:
    """One sink in a thread of its own. What fails is counted, and told once."""

    def __init__(self, name: str, make: Callable[[Opened], Sink], run: Opened) -> None:
        self.name, self.failed, self.written = name, 0, 0
        self._make, self._run = make, run
        self._waiting: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, method: str, *arguments: Any) -> None:
        """Has the sink's method called when its turn comes."""
        try:
            self._waiting.put_nowait((method, arguments))
        except queue.Full:
            self._fail(TimeoutError(f"{MOST_WAITING} writes wait already"))

    def close(self) -> None:
        """Waits, though not for ever, until all is written, and says how much was not."""
        try:
            self._waiting.put(None, timeout=LAST_SECONDS)
            self._thread.join(LAST_SECONDS)
        except queue.Full:
            pass
        if self._thread.is_alive():
            log.warning("log.to=%s: not all was written within %g s", self.name, LAST_SECONDS)
        if self.failed:
            log.warning("log.to=%s: %d writes failed, %d did not", self.name, self.failed, self.written)

    def _work(self) -> None:
        sink: Sink | None = None
        try:
            sink = self._make(self._run)
            lacks = [name for name in ("log", "groups", "close") if not callable(getattr(sink, name, None))]
            if lacks:
                self._fail(TypeError(f"it has no {' and no '.join(lacks)}, see docs/trackers.md"))
        except (Exception, SystemExit) as error:  # whatever a tracker raises
            self._fail(error)
        while (entry := self._waiting.get()) is not None:
            method, arguments = entry
            if sink is None:
                self.failed += 1
            else:
                self._call(sink, method, arguments)
        if sink is not None:
            self._call(sink, "close", ())

    def _call(self, sink: Sink, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            getattr(sink, method)(*arguments)
            self.written += method != "close"
        except (Exception, SystemExit) as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failed += 1
        if self.failed == 1:
            told = str(error).strip().split("\n")[0]
            log.warning(
                "log.to=%s: a write failed (%s: %s); the run goes on, and further failures are counted",
                self.name, type(error).__name__, told,
            )  # fmt: skip


def found(names: Sequence[str]) -> dict[str, Callable[[Opened], Sink]]:
    """What makes each of these sinks. ValueError for a name that is none, and for a package that is missing; nothing else is an error."""
    makes = {name: resolve(SINKS, name, "sink") for name in names}
    for name in makes:
        if name in SINKS and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"log.to={name}: the package {name} is not installed. Install it: {install_command(name)}, or leave {name} out of log.to."
            )
    return makes


class Sinks:
    """All sinks of a run, on its first rank; a context manager. ValueError as of `found`."""

    def __init__(self, names: Sequence[str], run: Opened) -> None:
        makes = found(names)
        self._outlets = [Outlet(name, make, run) for name, make in makes.items()]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics to every sink; those that are not finite are left out, since not all can hold them."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._put("log", step, finite)

    def groups(self, step: int, rows: Sequence[Row]) -> None:
        """A sample of groups to every sink."""
        if rows:
            self._put("groups", step, list(rows))

    def close(self) -> None:
        """Ends every sink."""
        for outlet in self._outlets:
            outlet.close()

    def _put(self, method: str, *arguments: Any) -> None:
        for outlet in self._outlets:
            outlet.put(method, *arguments)

    def __enter__(self) -> Sinks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
