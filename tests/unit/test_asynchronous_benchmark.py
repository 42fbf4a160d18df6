"""benchmarks/asynchronous.py: what it refuses, and how it ends with its server. What it measures needs a real one."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import asynchronous

        yield asynchronous
    finally:
        sys.path.remove(str(BENCHMARKS))


def python(folder: Path, script: str) -> Path:
    """An interpreter that runs this, whatever it is asked to run."""
    (folder / "server.py").write_text(script)
    made = folder / "python"
    made.write_text(f"#!/bin/sh\nexec {sys.executable} {folder / 'server.py'}\n")
    made.chmod(0o755)
    return made


def test_steps_that_leave_nothing_to_count_or_draw_are_refused(benchmark):
    assert benchmark.enough("4") == 4
    with pytest.raises(argparse.ArgumentTypeError, match="3: the first 2 are not counted; give 4 or more"):
        benchmark.enough("3")
    rows = [{"step": step, "phase": "train", "start": float(step), "seconds": 0.5} for step in range(1, 5)]
    assert "steps 2 to 3" in benchmark.drawn(rows, range(2, 4))


def test_a_server_that_ends_is_told_with_what_it_said(benchmark, tmp_path):
    made = python(tmp_path, "raise SystemExit('no such model')")
    told = "the server ended with status 1:\nno such model"
    with benchmark.serving(made, "m", tmp_path / "server.txt") as server:
        server.process.wait(60)
        with pytest.raises(RuntimeError, match=told):
            benchmark.train(["train", "tiny"], server)


def test_what_a_server_started_ends_with_it(benchmark, tmp_path, monkeypatch):
    """A child that hears no SIGTERM, and a server that ended by itself before."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    script = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
"""
    log = tmp_path / "server.txt"
    with benchmark.serving(python(tmp_path, script), "m", log) as server:
        assert server.process.wait(60) == 0
        child = int(log.read_text())
        os.kill(child, 0)
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.1)
    assert not alive(child)


def alive(number: int) -> bool:
    """Whether a process runs; one that has ended and waits for nobody does not."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(number)], stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    return bool(state.strip()) and not state.startswith("Z")
