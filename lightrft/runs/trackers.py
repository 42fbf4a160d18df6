"""Sinks of the trackers that people already have, each by that tracker's own interface. All are optional packages but TensorBoard."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightrft.runs.layout import RunFolder
from lightrft.runs.metrics import Scalars

Row = Mapping[str, Any]
"""A response: prompt, response, target, reward, finish, group."""


@dataclass(frozen=True)
class Opened:
    """The run that a sink is told of."""

    folder: Path
    """The run folder."""
    name: str
    """Name of the run: that of its folder, so that a run which goes on is the same one."""
    settings: Mapping[str, Any]
    """Every option by its dotted name."""
    done: int = 0
    """Steps that were taken before; later ones that a tracker knows already come again."""

    @property
    def project(self) -> str:
        """Where a tracker keeps its runs, unless a variable of its own says otherwise."""
        return "lightrft"


class TensorBoard(Scalars):
    """Events in RUN/tensorboard, and groups as text."""

    def __init__(self, run: Opened) -> None:
        super().__init__(RunFolder(run.folder).tensorboard, run.done)

    def groups(self, step: int, rows: Sequence[Row]) -> None:
        """Responses as JSON, one below the other."""
        lines = (json.dumps(dict(row), ensure_ascii=False, default=str) for row in rows)
        self.events.add_text("groups", "\n\n".join(f"    {line}" for line in lines), step)


class Wandb:
    """Weights & Biases; WANDB_PROJECT, WANDB_MODE=offline and its other variables hold."""

    def __init__(self, run: Opened) -> None:
        import wandb

        self._table = wandb.Table
        project = os.environ.get("WANDB_PROJECT", run.project)
        name, settings = run.name, dict(run.settings)
        self._run = wandb.init(
            project=project, name=name, id=_plain(name), resume="allow", dir=str(run.folder), config=settings
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of history."""
        self._run.log(dict(metrics), step=step)

    def groups(self, step: int, rows: Sequence[Row]) -> None:
        """A table of responses."""
        columns = list(rows[0])
        data = [[_cell(row[name]) for name in columns] for row in rows]
        self._run.log({"groups": self._table(columns=columns, data=data)}, step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


class Trackio:
    """Trackio, a local dashboard (`trackio show`); TRACKIO_PROJECT, TRACKIO_DIR and its other variables hold."""

    def __init__(self, run: Opened) -> None:
        import trackio

        self._trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT", run.project)
        self._run = trackio.init(
            project=project, name=run.name, config=dict(run.settings), resume="allow", embed=False
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of metrics."""
        self._run.log(dict(metrics), step=step)

    def groups(self, step: int, rows: Sequence[Row]) -> None:
        """A table of responses."""
        import pandas

        frame = pandas.DataFrame([{name: _cell(value) for name, value in row.items()} for row in rows])
        self._run.log({"groups": self._trackio.Table(dataframe=frame)}, step=step)

    def close(self) -> None:
        """Ends the run there, when all is written."""
        self._run.finish()


class Mlflow:
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold."""

    def __init__(self, run: Opened) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", run.project)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key, str(value)[:500]) for key, value in run.settings.items()]
        for start in range(0, len(params), 100):  # as many as a call takes
            self._client.log_batch(self._id, params=params[start : start + 100])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics, whose names have only signs that MLflow takes: pass@1 becomes pass_at_1."""
        now = int(time.time() * 1000)
        entries = [
            self._metric(re.sub(r"[^\w./ -]", "_", name.replace("@", "_at_")), value, now, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=entries)

    def groups(self, step: int, rows: Sequence[Row]) -> None:
        """A JSON file of responses among the artifacts."""
        text = json.dumps([dict(row) for row in rows], ensure_ascii=False, indent=1, default=str)
        self._client.log_text(self._id, text, f"groups/step-{step:06d}.json")

    def close(self) -> None:
        """Ends the run there."""
        self._client.set_terminated(self._id)


class Swanlab:
    """SwanLab; SWANLAB_PROJ_NAME, SWANLAB_MODE=local and its other variables hold."""

    def __init__(self, run: Opened) -> None:
        import swanlab

        self._text = swanlab.Text
        project = os.environ.get("SWANLAB_PROJ_NAME", run.project)
        self._run = swanlab.init(project=project, experiment_name=run.name, config=dict(run.settings))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Scalars."""
        self._run.log(dict(metrics), step=step)

    def groups(self, step: int, rows: Sequence[Row]) -> None:
        """Responses as texts."""
        texts = [self._text(json.dumps(dict(row), ensure_ascii=False, default=str)) for row in rows]
        self._run.log({"groups": texts}, step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]", "-", name)[-64:]


def _cell(value: Any) -> Any:
    """A value that every tracker's table takes."""
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, default=str)
