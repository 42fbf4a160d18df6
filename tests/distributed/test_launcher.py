"""The launcher of `--processes N`: who can reach it, and that nothing it started outlives the limit or the launcher itself."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.runs import PLAIN, environment

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
FAULTY = ["--trainer", "faulty.py:Faulty", "--strategy.backend", "fsdp"]
LONG = [
    "train",
    "tiny",
    *PLAIN,
    "--evaluate.before-and-after=false",
    "--steps",
    "500",
    *FAULTY,
    "--run",
    "run",
]
TWO = ["--processes", "2"]


@contextlib.contextmanager
def starting(folder):
    """Starts commands in a folder as a user does; what they have started is gone afterwards, whatever the test says."""
    shutil.copy(Path(__file__).with_name("faulty.py"), folder)
    started = []

    def start(*args, env=None):
        output = folder / f"output-{len(started)}.txt"
        process = subprocess.Popen(
            [sys.executable, "-m", "lightrft", *args],
            cwd=folder,
            env=environment() | (env or {}),
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
        )
        process.output = output
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
            process.wait()


@pytest.fixture
def launched(tmp_path):
    with starting(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def learning(tmp_path_factory):
    """A run with a short time limit that has taken two steps; the last test that looks at it ends it."""
    with starting(tmp_path_factory.mktemp("learning")) as start:
        run = start(*LONG, *TWO, "--strategy.timeout-seconds", "4")
        learns(run)
        yield run


def until(condition, process, seconds=90):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, process.output.read_text()
        assert process.poll() is None, process.output.read_text()
        time.sleep(0.05)
    return found


def ranks(process, count=2):
    """The ranks, by rank, once all are Python."""
    found = {}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children():
            rank = child.environ().get("RANK")  # absent until it has a program of its own
            if rank is not None and "lightrft" in child.cmdline() and "env" not in child.name():
                found[int(rank)] = child
    return [found[rank] for rank in range(count)] if len(found) == count else []


def learns(process):
    """Waits until the run has taken two steps."""
    metrics = Path(process.output.parent, "run", "metrics.jsonl")
    until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 2, process)


def listening(process):
    """Addresses at which a process and all that it has started listen."""
    members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return {c.laddr.ip for p in members for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@pytest.mark.slow
def test_nothing_of_a_run_on_one_machine_listens_outside_the_loopback_address(learning):
    assert listening(learning) == {"127.0.0.1"}


def seconds_until_all_ended(process, members):
    start = time.monotonic()
    status = process.wait(timeout=100)
    _, alive = psutil.wait_procs(members, timeout=10)
    assert not alive, process.output.read_text()
    return status, time.monotonic() - start


@pytest.mark.slow
def test_a_run_whose_ranks_were_all_stopped_is_ended_by_the_launcher(learning):
    both = ranks(learning)
    for rank in both:
        rank.send_signal(signal.SIGSTOP)
    status, seconds = seconds_until_all_ended(learning, both)
    told = learning.output.read_text()
    assert status == 2, told
    assert seconds < 4 * 1.1 + 22, told
    assert "no process has given a sign for" in told
    assert "Rank 1: phase " in told
    assert "strategy.timeout_seconds=4" in told


@pytest.mark.slow
def test_a_rank_that_was_stopped_ends_with_the_limit_and_is_named(launched):
    run = launched(*LONG, *TWO, "--strategy.timeout-seconds", "6")
    learns(run)
    both = ranks(run)
    both[1].send_signal(signal.SIGSTOP)
    status, seconds = seconds_until_all_ended(run, both)
    told = run.output.read_text()
    assert status == 2, told
    assert seconds < 6 + 22, told
    assert "rank 1 did not come" in told.lower()
    assert "gives no sign" in told
    assert "kernel" not in told, "the launcher ended it, not the kernel"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "steps"])
def test_ranks_end_with_a_launcher_that_is_killed(launched, moment):
    run = launched(*LONG, *TWO)
    both = until(lambda: ranks(run), run)
    if moment == "steps":
        learns(run)
    else:
        until(lambda: all("torch" in "".join(m.path for m in r.memory_maps()) for r in both), run)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(both, timeout=5)
    assert not alive


def as_rank(rank, port):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    return place | {"RANK": str(rank), "WORLD_SIZE": "2"}


@pytest.fixture
def port():
    """A port at which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


ALONE = [
    "train",
    "tiny",
    *PLAIN,
    "--strategy.backend",
    "fsdp",
    "--run",
    "run",
    "--strategy.timeout-seconds",
    "4",
]


def refused(lightrft, variables):
    done = lightrft.start(*ALONE, env=variables).wait()
    assert done.status == 2, done.output
    assert "Traceback" not in done.output
    return done.output


def test_a_port_that_is_in_use_is_named_with_a_cure(lightrft):
    with socket.create_server(("0.0.0.0", 0)) as listening:
        port = listening.getsockname()[1]
        told = refused(lightrft, as_rank(0, port))
    assert f"rank 0 cannot listen at MASTER_PORT={port}" in told
    assert "Set MASTER_PORT to a free port" in told


@pytest.mark.parametrize("rank", [0, 1])
def test_a_peer_that_never_comes_is_told_in_a_sentence(lightrft, port, rank):
    told = refused(lightrft, as_rank(rank, port))
    assert f"rank {rank} of 2 waited" in told
    assert f"MASTER_PORT={port}" in told
    assert "strategy.timeout_seconds=4" in told


def test_a_variable_that_is_missing_is_named(lightrft):
    assert "MASTER_PORT is not set" in refused(lightrft, as_rank(0, ""))
