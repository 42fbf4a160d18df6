"""Metrics of a run: one JSON object per line in RUN/metrics.jsonl, and TensorBoard events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lightrft.runs.layout import RunFolder
from lightrft.utils.atomic import write_text


class Scalars:
    """TensorBoard events of metrics. Those of steps after `start_step` that are there are hidden, since these will be taken again."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.events: Any = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes each metric of a step, at once."""
        for name, value in metrics.items():
            self.events.add_scalar(name, value, step)
        self.events.flush()

    def close(self) -> None:
        """Closes the file of events."""
        self.events.close()


class Logger:
    """Writes the metrics of each step, so that a run that is killed has lost nothing that it logged.

    Only one rank may hold one. `start_step` is the number of steps already done: with a resumed run, lines of later
    steps are dropped, since these steps will be taken again.
    """

    def __init__(self, run: Path, start_step: int = 0, *, tensorboard: bool = True) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self.path = RunFolder(run).metrics
        drop_after(self.path, start_step)
        self._file: IO[str] = self.path.open("a", encoding="utf-8")
        self._scalars = Scalars(RunFolder(run).tensorboard, start_step) if tensorboard else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line {"step", "time", ...}. A value that is NaN or infinite is written as null."""
        row = {"step": step, "time": time.time()} | {name: _finite(value) for name, value in metrics.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._scalars is not None:
            self._scalars.log(step, metrics)

    def close(self) -> None:
        """Closes the files of metrics."""
        self._file.close()
        if self._scalars is not None:
            self._scalars.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of RUN/metrics.jsonl in order; a last line that was cut off while being written is left out.

    ValueError naming the line for any other that is broken.
    """
    path = RunFolder(run).metrics
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [_row(path, number, line) for number, line in enumerate(lines[:-1], start=1)]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{path}:{number}: the line is broken ({error}). Remove it, and go on without that step's metrics."
        ) from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{path}:{number}: the line holds no metrics. Remove it, and go on without that step's."
        )
    return row


def learned_from_given(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run with these metrics learned from given responses (sft, reward, dpo), so that no step has a reward."""
    return bool(rows) and not any("reward/mean" in row for row in rows)


def series(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one metric where it was logged and finite."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def drop_after(path: Path, step: int) -> None:
    """Rewrites a metrics file without the lines of later steps and without a cut last line; nothing if there is none."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
