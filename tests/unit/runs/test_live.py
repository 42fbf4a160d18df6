"""What a run says of itself while it goes on: events, status, and that neither can end it."""

import json
import logging
import os
import socket
import time

import pytest

from lightrft.runs import live
from lightrft.runs.layout import RunFolder
from lightrft.runs.live import Events, Status, described, note_environment, status, timeline
from lightrft.strategy.memory import MemoryPlan, Phase, Tensors
from lightrft.utils.interrupt import Stopped

NOW = {"phase": "rollout", "step": 3, "done": 2, "steps": 24, "responses": [12, 64], "seconds_left": 250}


def written(folder, **changes):
    """A status of this moment and machine, with changes."""
    said = {**NOW, "state": "running", "time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
    RunFolder(folder).status.write_text(json.dumps(said | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "running: rollout of step 3 of 24, 12 of 64 responses, 4:10 left"),
        ({"responses": [0, 0], "seconds_left": None}, "running: rollout of step 3 of 24"),
        ({"host": "another"}, "running: rollout of step 3 of 24, 12 of 64 responses, 4:10 left"),
        ({"pid": 2**22 + 1}, "ended without a word in rollout of step 3 of 24 (killed?)"),
        ({"host": "another", "time": 1}, "ended without a word in rollout of step 3 of 24 (killed?)"),
        ({"state": "finished", "done": 24}, "finished after step 24 of 24"),
        ({"state": "failed", "why": "no room"}, "failed after step 2 of 24: no room"),
        (
            {"seconds_left": 3 * 3600 + 61},
            "running: rollout of step 3 of 24, 12 of 64 responses, 3:01:01 left",
        ),
    ],
)
def test_a_status_is_one_line_and_tells_a_process_that_is_gone(tmp_path, changes, told):
    written(tmp_path, **changes)
    assert described(status(tmp_path)) == told


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_folder_that_does_not_say_has_no_status(tmp_path, text):
    assert status(tmp_path) == {}
    RunFolder(tmp_path).status.write_text(text)
    assert described(status(tmp_path)) == ""


def test_it_follows_what_happens_and_says_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.01)
    now = dict(NOW)

    def until(wanted):
        end = time.monotonic() + 10
        while described(status(tmp_path)) != wanted:
            assert time.monotonic() < end, status(tmp_path)
            time.sleep(0.01)

    def fail(error):
        with Status(RunFolder(tmp_path).status, lambda: now):
            until("running: rollout of step 3 of 24, 12 of 64 responses, 4:10 left")
            now["responses"] = [13, 64]
            until("running: rollout of step 3 of 24, 13 of 64 responses, 4:10 left")
            now["responses"] = [12, 64]
            if error is not None:
                raise error

    fail(None)
    assert described(status(tmp_path)) == "finished after step 2 of 24"
    with pytest.raises(ValueError, match="no room"):
        fail(ValueError("no room\nmore"))
    assert described(status(tmp_path)) == "failed after step 2 of 24: no room"
    with pytest.raises(Stopped):
        fail(Stopped("SIGTERM"))
    assert status(tmp_path)["state"] == "stopped"


def test_a_phase_is_written_down_with_what_it_moved(tmp_path):
    events = Events(RunFolder(tmp_path).events(2))
    sizes = iter([0, 5, 5, 5])
    plan = MemoryPlan(lambda: next(sizes), most=lambda: 7, ended=lambda end: events.phase(4, end))
    plan.add("engine cache", Tensors(list, "cpu", moves=False), Phase.ROLLOUT)
    with plan(Phase.ROLLOUT):
        time.sleep(0.02)
    with pytest.raises(KeyError), plan(Phase.ROLLOUT):
        raise KeyError
    first, second = map(json.loads, RunFolder(tmp_path).events(2).read_text().splitlines())
    assert first["seconds"] >= 0.02
    known = {"event": "phase", "step": 4, "phase": "rollout", "moved": ["+engine cache"], "waited": 0}
    assert {**first, **known, "after_bytes": 5, "peak_bytes": 7} == first
    assert (second["moved"], second["before_bytes"], second["after_bytes"]) == ([], 5, 5)


def test_what_cannot_be_written_ends_nothing_and_is_said_once(tmp_path, caplog):
    gone = tmp_path / "file"
    gone.write_text("")
    with caplog.at_level(logging.WARNING, "lightrft"):
        events = Events(gone / "events.jsonl")
        events.add("start", 0)
        events.add("start", 0)
        with Status(gone / "status.json", lambda: NOW):
            pass
        note_environment(gone, 1)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "events are not written",
        "status.json is not written",
        "environment.json is not written",
    ]


def test_each_start_is_noted(tmp_path):
    note_environment(tmp_path, 1)
    note_environment(tmp_path, 2)
    starts = json.loads(RunFolder(tmp_path).environment.read_text())["starts"]
    assert [start["processes"] for start in starts] == [1, 2]


@pytest.mark.parametrize(
    ("later", "steps"),
    [
        ([("start", 2)], [1, 2]),
        ([("start", 2), ("start", 1)], [1]),
        ([("start", 2), ("saved", 2)], [1, 2]),
        ([("start", 2), ("phase", 3)], [3]),
        ([("start", 2), ("phase", 3), ("start", 2), ("start", 2)], [1, 2]),
    ],
)
def test_a_start_after_which_nothing_came_leaves_the_phases_of_the_steps_that_were_done(
    tmp_path, later, steps
):
    events = Events(RunFolder(tmp_path).events(0))
    for event, step in [("start", 0), ("phase", 1), ("phase", 2), ("phase", 3), *later]:
        events.add(event, step, **({"phase": "train", "seconds": 1.0} if event == "phase" else {}))
    assert sorted({one["step"] for one in timeline(tmp_path)}) == steps
