"""Sinks get every metric and a sample of groups, in a thread of their own, and never stop a run or hold it up."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time

import pytest

from lightrft.runs import sinks
from lightrft.runs.layout import RunFolder
from lightrft.runs.sinks import SINKS, Sinks
from lightrft.runs.trackers import Opened
from lightrft.runs.trajectories import sample
from lightrft.types import Prompt, Trajectory
from lightrft.utils.inline import held

ROWS = [{"group": 3, "prompt": "2 + 3?", "response": "5\n", "target": "5", "reward": 1.0, "finish": "stop"}]


class Kept:
    """A sink in memory."""

    def __init__(self, run):
        self.run, self.logged, self.seen, self.closed = run, [], [], False
        type(self).last = self

    def log(self, step, metrics):
        self.logged.append((step, metrics))

    def groups(self, step, rows):
        self.seen.append((step, rows))

    def close(self):
        self.closed = True


class Broken(Kept):
    def log(self, step, metrics):
        if step > 1:
            raise ConnectionError("no network\nmore of it")
        super().log(step, metrics)


class Refused(Kept):
    def __init__(self, run):
        raise SystemExit("not logged in")


class Stuck(Kept):
    def log(self, step, metrics):
        threading.Event().wait(30)


def opened(folder):
    return Opened(folder, "demo", {"steps": 2, "optimizer.betas": [0.9, 0.99]})


@pytest.fixture
def _held():
    with held({f"inline:{one.__name__}": one for one in (Kept, Broken, Refused, Stuck)}):
        yield


@pytest.mark.usefixtures("_held")
def test_a_sink_of_ones_own_gets_what_is_finite_in_order_and_is_closed(tmp_path):
    with Sinks(["inline:Kept"], opened(tmp_path)) as found:
        found.log(1, {"kl": 0.5, "broken": math.nan})
        found.groups(1, ROWS)
        found.groups(2, [])
        found.log(2, {"kl": 1})
    kept = Kept.last
    assert kept.logged == [(1, {"kl": 0.5}), (2, {"kl": 1.0})]
    assert kept.seen == [(1, ROWS)]
    assert kept.closed
    assert (kept.run.name, kept.run.settings["steps"]) == ("demo", 2)


@pytest.mark.usefixtures("_held")
def test_what_fails_is_told_once_and_counted_and_the_others_go_on(tmp_path, caplog):
    with (
        caplog.at_level(logging.WARNING, "lightrft"),
        Sinks(["inline:Broken", "inline:Refused", "inline:Kept"], opened(tmp_path)) as found,
    ):
        for step in (1, 2, 3):
            found.log(step, {"kl": 0.5})
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == [
        "log.to=inline:Broken: 2 writes failed, 1 did not",
        "log.to=inline:Broken: a write failed (ConnectionError: no network); the run goes on, and further failures are counted",
        "log.to=inline:Refused: 4 writes failed, 0 did not",
        "log.to=inline:Refused: a write failed (SystemExit: not logged in); the run goes on, and further failures are counted",
    ]
    assert [step for step, _ in Kept.last.logged] == [1, 2, 3]


@pytest.mark.usefixtures("_held")
def test_a_sink_that_hangs_holds_nobody_up(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sinks, "LAST_SECONDS", 0.2)
    monkeypatch.setattr(sinks, "MOST_WAITING", 3)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, "lightrft"), Sinks(["inline:Stuck"], opened(tmp_path)) as found:
        for step in range(10):
            found.log(step, {"kl": 0.5})
    assert time.monotonic() - begun < 5
    assert "3 writes wait already" in caplog.text


def test_a_name_that_is_none_and_a_package_that_is_missing_are_told_with_the_cure(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no sink named 'wandv'. Did you mean 'wandb'"):
        Sinks(["wandv"], opened(tmp_path))
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "swanlab" else there(name))
    with pytest.raises(
        ValueError,
        match="log.to=swanlab: the package swanlab is not installed. Install it: pip install swanlab",
    ):
        Sinks(["swanlab"], opened(tmp_path))


def test_what_a_sink_lacks_is_told_before_anything_is_written(tmp_path, caplog):
    (tmp_path / "mine.py").write_text(
        "class Half:\n    def __init__(self, run):\n        self.log = lambda step, metrics: (run.folder / 'got').write_text(str(metrics))\n"
    )
    with Sinks([f"{tmp_path / 'mine.py'}:Half"], opened(tmp_path)) as sinks:
        sinks.log(1, {"loss": 0.5})
    assert "it has no groups and no close, see docs/trackers.md" in caplog.text
    assert (tmp_path / "got").read_text() == "{'loss': 0.5}", "what it has is used"


def test_tensorboard_gets_scalars_and_groups(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Sinks(["tensorboard"], opened(tmp_path)) as found:
        found.log(1, {"kl": 0.5})
        found.groups(1, ROWS)
    events = EventAccumulator(str(RunFolder(tmp_path).tensorboard)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("kl")] == [(1, 0.5)]
    assert b"2 + 3?" in events.Tensors("groups/text_summary")[0].tensor_proto.string_val[0]


TRACKED = """
import json, sys
from pathlib import Path
from lightrft.runs.sinks import Sinks
from lightrft.runs.trackers import Opened

name, folder = sys.argv[1:]
with Sinks([name], Opened(Path(folder), "demo", {"steps": 2, "optimizer.betas": [0.9, 0.99]})) as found:
    for step in (1, 2):
        found.log(step, {"reward/mean": 0.25 * step, "evaluation/pass@1": 0.5})
        found.groups(step, json.loads(sys.stdin.readline()))
print([(outlet.written, outlet.failed) for outlet in found._outlets])
"""
OFFLINE = {
    "WANDB_MODE": "offline",
    "SWANLAB_MODE": "local",
    "HF_HUB_OFFLINE": "1",
    "WANDB_SILENT": "true",
    "TRACKIO_PROJECT": "tried",
}


def tracked(name, folder):
    """Writes two steps by a tracker of another package, in a process of its own, without a network; it must be installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    places = {"TRACKIO_DIR": str(folder / "trackio"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    done = subprocess.run(
        [sys.executable, "-c", TRACKED, name, str(folder)],
        env={**os.environ, **OFFLINE, **places, "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"},
        input=f"{json.dumps(ROWS)}\n" * 2, capture_output=True, text=True, check=True, cwd=folder, timeout=200,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[(4, 0)]", done.stdout + done.stderr


def test_wandb_takes_metrics_and_groups_offline(tmp_path):
    tracked("wandb", tmp_path)
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"reward/mean" in content
    assert b"groups" in content


def test_trackio_takes_metrics_and_groups_into_its_own_data_base(tmp_path):
    import sqlite3

    tracked("trackio", tmp_path)
    (file,) = tmp_path.glob("trackio/tried*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select step, metrics from metrics order by id").fetchall()
    logged = [(step, json.loads(text)) for step, text in rows]
    assert [(step, one["reward/mean"]) for step, one in logged if "reward/mean" in one] == [
        (1, 0.25),
        (2, 0.5),
    ]
    assert sum("groups" in one for _, one in logged) == 2


@pytest.mark.parametrize("name", ["mlflow", "swanlab"])
def test_other_trackers_take_metrics_and_groups_where_they_are_installed(name, tmp_path):
    tracked(name, tmp_path)


def test_a_sample_is_whole_groups_in_their_order():
    made = []
    for group, reward in ((5, 1.0), (2, math.nan), (5, 0.0)):
        prompt = Prompt(f"q{group}", [1], [{"role": "user", "content": f"ask {group}"}], None, "s")
        made.append(Trajectory(prompt, group, [7], [True], [-0.5], "stop", answer="a", reward=reward))
    found = sample(made, 1)
    assert [(row["group"], row["prompt"], row["reward"], row["target"]) for row in found] == [
        (5, "ask 5", 1.0, ""),
        (5, "ask 5", 0.0, ""),
    ]
    assert sample(made, 2)[1]["reward"] is None
    assert set(SINKS) == {"mlflow", "swanlab", "tensorboard", "trackio", "wandb"}
