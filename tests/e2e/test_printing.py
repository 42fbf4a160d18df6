"""Whole runs whose output goes to where nothing can be written."""

from __future__ import annotations

import os
import signal

from tests.e2e.runs import PLAIN, steps, wait_until

SMALL = [*PLAIN, "--evaluate.before-and-after=false", "--rollout.max-tokens", "5", "--checkpoint.every-steps", "0"]  # fmt: skip


def into(lightrft, place, *args):
    """The exit status of a command whose output goes to a file of the system."""
    pid = lightrft.server.ask(args=list(map(str, args)), cwd=str(lightrft.cwd), output=str(place), env={})[
        "pid"
    ]
    return lightrft.server.ask(wait=pid)["status"]


def test_a_run_goes_on_when_nothing_can_be_printed(lightrft, tmp_path):
    assert into(lightrft, "/dev/full", "train", "tiny", *SMALL, "--steps", "2", "--run", "full") == 0
    assert [row["step"] for row in steps(tmp_path / "full")] == [1, 2]
    assert "nothing more is printed" in (tmp_path / "full" / "log.txt").read_text()


def test_a_run_goes_on_when_its_reader_has_left(lightrft, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR)  # a pipe without a writer would be at its end at once
    running = lightrft.server.ask(
        args=["train", "tiny", *SMALL, "--steps", "3", "--run", "run"], cwd=str(tmp_path), output=str(tmp_path / "pipe"), env={}
    )  # fmt: skip
    assert os.read(reader, 10)
    os.close(reader)
    assert lightrft.server.ask(wait=running["pid"])["status"] == 0
    assert [row["step"] for row in steps(tmp_path / "run")] == [1, 2, 3]


def test_a_run_whose_terminal_closes_saves_and_goes_on_later(lightrft, tmp_path):
    running = lightrft.start("train", "tiny", *SMALL, "--steps", "200", "--run", "run")
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and steps(tmp_path / "run"), running=running)  # fmt: skip
    running.send(signal.SIGHUP)
    assert running.wait().status == 129
    done = len(steps(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:06d}").is_dir()
