"""Two runs that want one folder, and what killed ones leave in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from lightrft.config import Config, layers
from lightrft.runs import folder as folders
from lightrft.runs.folder import begun, evaluated_in, new_run, taken_up
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.lock import locked
from tests.e2e.runs import environment

HOLD = """
import sys, time
from pathlib import Path
from lightrft.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return layers.load(["tiny"], Config)


@pytest.fixture
def holder(tmp_path):
    """Another process that uses the folder `run`."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_runs_begun_in_the_same_second_get_folders_of_their_own(config, monkeypatch):
    monkeypatch.setattr(folders.time, "strftime", lambda form: "20260101-000000")
    made = [new_run(replace(config, name="a", seed=seed)) for seed in (1, 2, 3)]
    assert [run.name for run in made] == [
        "a-20260101-000000",
        "a-20260101-000000-2",
        "a-20260101-000000-3",
    ]
    assert ["seed: 2" in RunFolder(run).config.read_text() for run in made] == [False, True, False]
    evaluations = []
    for _ in range(2):
        with evaluated_in(config) as place:
            evaluations.append(place)
    assert evaluations[0] != evaluations[1]


def test_settings_that_someone_wrote_are_never_overwritten(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("# my notes\nsteps: 2\n")
    with pytest.raises(ValueError, match=r"run=mine: mine/config.yaml is there already"):
        new_run(replace(config, run="mine"))
    assert (tmp_path / "mine" / "config.yaml").read_text() == "# my notes\nsteps: 2\n"


def test_settings_that_someone_changed_are_never_overwritten(config):
    run = new_run(replace(config, run="run"))
    changed = RunFolder(run).config.read_text() + "# mine now\n"
    RunFolder(run).config.write_text(changed)
    with pytest.raises(ValueError, match=r"or was changed since"):
        new_run(replace(config, run="run", seed=7))
    assert RunFolder(run).config.read_text() == changed


def test_settings_of_a_start_that_came_to_nothing_make_room(config):
    new_run(replace(config, run="run"))
    run = new_run(replace(config, run="run", seed=7))
    assert "seed: 7" in RunFolder(run).config.read_text()


def test_processes_that_a_launcher_starts_find_its_settings_or_refuse(config, monkeypatch):
    run = new_run(replace(config, run="run"))
    monkeypatch.setenv(folders.NEW_RUN, RunFolder(run).settings_digest)
    with taken_up(run, "train", again=False):
        pass
    new_run(replace(config, run="run", seed=7))
    with (
        pytest.raises(ValueError, match=r"another process has written its settings"),
        taken_up(run, "train", again=False),
    ):
        pass


def test_a_folder_in_use_is_refused_with_the_name_of_who_uses_it(config, tmp_path, holder):
    run, who = tmp_path / "run", rf"run is in use by process {holder.pid} on "
    for attempt in (
        begun(replace(config, run="run"), "train"),
        taken_up(run, "train", again=True),
        evaluated_in(replace(config, run="run")),
        locked(run),
    ):
        with pytest.raises(ValueError, match=who), attempt:
            pass
    assert sorted(p.name for p in run.iterdir()) == [".lock"]


def test_a_killed_process_holds_nothing(tmp_path, holder):
    holder.kill()
    holder.wait()
    with locked(tmp_path / "run"):
        pass


def test_a_child_that_outlives_its_run_holds_nothing(tmp_path):
    reads, writes = os.pipe()
    with locked(tmp_path):
        child = os.fork()
        if not child:
            os.write(writes, b"x")
            signal.pause()
        os.read(reads, 1)
    try:
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_where_there_are_no_locks_a_living_process_of_this_machine_is_seen(tmp_path, holder, monkeypatch):
    def refused(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("lightrft.runs.lock.fcntl.flock", refused)
    with pytest.raises(ValueError, match=rf"in use by process {holder.pid}"), locked(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path / "run"):
        pass


def test_an_evaluation_keeps_out_of_runs_and_of_other_evaluations(config, tmp_path):
    run = new_run(replace(config, run="run"))
    with (
        pytest.raises(ValueError, match=r"the folder of a training run"),
        evaluated_in(replace(config, run="run")),
    ):
        pass
    other = replace(config, run="other")
    with evaluated_in(other) as place:
        EvaluationFolder(place).write("responses", {}, [])
    with pytest.raises(ValueError, match=r"there is an evaluation already"), evaluated_in(other):
        pass
    with pytest.raises(ValueError, match=r"there is an evaluation already"):
        new_run(other)
    assert RunFolder(run).is_run


def test_what_a_killed_run_left_unfinished_goes_when_it_is_taken_up(config):
    run = new_run(replace(config, run="run"))
    files = RunFolder(run)
    left = [
        run / ".tmp-model-123" / "model.safetensors",
        run / ".tmp-summary.json-123",
        files.evaluation / ".tmp-before.json-123",
        files.trajectories / ".tmp-step-000001.parquet",
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("half")
    with taken_up(run, "train", again=True):
        assert not any(file.exists() for file in left)
    assert not (run / ".tmp-model-123").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ""])
def test_a_name_leads_to_no_other_place(config, name):
    with pytest.raises(ValueError, match=r"name=.* cannot lead to another place"):
        new_run(replace(config, name=name))


def test_a_run_folder_that_is_a_file_is_named(config, tmp_path):
    (tmp_path / "afile").write_text("")
    with pytest.raises(RuntimeError, match=r"cannot write in afile: there is a file of this name"):
        new_run(replace(config, run="afile"))


def test_a_user_that_does_not_exist_is_named(config):
    with pytest.raises(ValueError, match=r"run=~nobody-here/x: there is no user called nobody-here"):
        new_run(replace(config, run="~nobody-here/x"))
