"""What can happen to one of several processes: no hang beyond the time limit, no loss beyond the last checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.pair import ranks
from tests.e2e.runs import PLAIN, Lightrft, assert_same_run, environment, short, steps, wait_until
from tests.receiving import receiving

pytestmark = pytest.mark.timeout(150)
SMALL = [*PLAIN, "--evaluate.before-and-after=false", "--rollout.max-tokens", "5", "--strategy.device", "cpu"]
EVERY_STEP = ["--checkpoint.every-steps", "1", "--checkpoint.keep-last", "9", "--steps", "4"]
FAULTY = ["--trainer", "faulty.py:Faulty", "--strategy.backend", "fsdp"]
RUN = short(["train", "tiny", *SMALL, *EVERY_STEP, *FAULTY])
QUICK = 30
"""Seconds in which all is over after something has happened, on a busy machine."""


@pytest.fixture(autouse=True)
def faulty(tmp_path):
    shutil.copy(Path(__file__).with_name("faulty.py"), tmp_path)


def ended(lightrft, *args, fault):
    """How two ranks ended, and the seconds it took from the moment of the fault."""
    both = ranks(lightrft, *args, fault=fault)
    wait_until((lightrft.cwd / "happened").exists, running=both[0])
    start = time.monotonic()
    done = [rank.wait() for rank in both]
    return done, time.monotonic() - start


def launched(cwd, *args, fault="none:none:0"):
    """`lightrft ARGS` as a user starts it, in a fresh interpreter, under way; temporary files go to `cwd`/temporary."""
    (cwd / "temporary").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "lightrft", *args],
        cwd=cwd,
        env=environment() | {"FAULT": fault, "TMPDIR": str(cwd / "temporary")},
        stdout=(cwd / "launched.txt").open("w"),
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="session")
def whole(server, tmp_path_factory):
    """The run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(Path(__file__).with_name("faulty.py"), folder)
    done = [rank.wait() for rank in ranks(Lightrft(server, folder), *RUN, "--run", "run")]
    assert [d.status for d in done] == [0, 0], done[0].output + done[1].output
    return folder / "run"


def goes_on_to_the_same_end(lightrft, whole):
    done = [rank.wait() for rank in ranks(lightrft, "train", "--resume", "run")]
    assert [d.status for d in done] == [0, 0], done[0].output + done[1].output
    assert_same_run(lightrft.cwd / "run", whole)


# -- one rank is killed, raises or stalls ------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["rollout", "score", "train", "save"])
def test_when_a_rank_is_killed_the_other_ends_and_says_so_and_the_run_can_go_on(
    lightrft, tmp_path, whole, phase
):
    with receiving() as (server, url):
        done, seconds = ended(lightrft, *RUN, "--run", "run", "--log.notify", url, fault=f"kill:{phase}:1")
    assert seconds < QUICK
    ((_, _, told),) = server.told
    assert told["event"] == "failed"
    assert f"rank 1 ended without a word (phase {phase}, step " in told["error"]
    assert (done[0].status, done[1].status) == (done[0].status or "not 0", -signal.SIGKILL)
    assert f"rank 1 ended without a word (phase {phase}, step " in done[0].output
    assert "rank 1 ended without a word" in (tmp_path / "run" / "log.txt").read_text()
    assert "rank 1 ended without a word" in json.loads((tmp_path / "run" / "status.json").read_text())["why"]
    goes_on_to_the_same_end(lightrft, whole)


@pytest.mark.parametrize("phase", ["rollout", "score", "train"])
def test_when_a_rank_raises_all_end_and_its_traceback_is_told_once(lightrft, tmp_path, phase):
    done, seconds = ended(lightrft, *RUN, "--run", "run", fault=f"raise:{phase}:1")
    assert seconds < QUICK
    assert 0 not in [d.status for d in done]
    shown = done[0].output + done[1].output
    assert shown.count("KeyError: 'no such key'") == 1
    assert shown.count("Traceback") == 1
    assert "in hit" in shown
    for file in ("log.txt", "logs/rank-1.txt"):
        assert "KeyError: 'no such key'" in (tmp_path / "run" / file).read_text()


def test_a_rank_that_does_not_come_is_named_with_where_it_is_and_what_it_does(lightrft, tmp_path):
    flags = ["--strategy.timeout-seconds", "6"]
    done, seconds = ended(lightrft, *RUN, "--run", "run", *flags, fault="stall:score:1")
    assert seconds < 6 + QUICK
    assert 0 not in [d.status for d in done]
    assert "rank 0 waited 6 s in world." in done[0].output
    assert "phase score, step 2: rank 1 did not come, it is in phase score, step 2" in done[0].output
    assert "strategy.timeout_seconds=6" in done[0].output
    assert 'faulty.py", line' in (tmp_path / "run" / "logs" / "rank-1.txt").read_text()


def test_a_stall_inside_a_collective_of_the_backend_ends_in_time_with_the_stacks(lightrft, tmp_path):
    with receiving() as (server, url):
        flags = ["--strategy.timeout-seconds", "6", "--log.notify", url]
        done, seconds = ended(lightrft, *RUN, "--run", "run", *flags, fault="stall:train:1")
    assert [told["event"] for _, _, told in server.told] == ["failed"]
    assert seconds < 6 + QUICK
    assert 0 not in [d.status for d in done]
    assert "lightrft: rank 0 " in done[0].output
    assert "Rank 1: phase train, step 2" in done[0].output
    assert 'faulty.py", line' in (tmp_path / "run" / "logs" / "rank-1.txt").read_text()


# -- our launcher ------------------------------------------------------------------------------------------------------


def test_after_a_crash_the_launcher_starts_again_from_the_last_checkpoint_by_itself(tmp_path, whole):
    flags = ["--processes", "2", "--max-restarts", "1", "--run", "run"]
    running = launched(tmp_path, *RUN, *flags, fault="kill:train:1")
    status, output = running.wait(140), (tmp_path / "launched.txt").read_text()
    assert status == 0, output
    assert "lightrft: starting again (1 of 1)" in output
    left = [place.name for place in (tmp_path / "temporary").iterdir()]
    assert not [name for name in left if name.startswith(("torchelastic", "lightrft-"))]
    assert_same_run(tmp_path / "run", whole)


def test_a_second_process_cannot_take_up_a_run_of_several_that_lives(tmp_path, lightrft):
    running = launched(tmp_path, *RUN, "--processes", "2", "--run", "run", fault="slow:rollout:0")
    wait_until(lambda: (tmp_path / "happened").exists() or running.poll() is not None, running=running)
    output = lightrft("train", "--resume", "run", "--strategy.backend", "single", status=2)
    assert "run is in use by process" in output
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM


def test_without_restarts_the_launcher_says_once_what_happened_and_passes_the_status_on(tmp_path):
    running = launched(tmp_path, *RUN, "--processes", "2", "--run", "run", fault="raise:train:1")
    status, output = running.wait(140), (tmp_path / "launched.txt").read_text()
    assert status == 1
    assert output.count("Traceback") == 1
    assert output.rstrip().endswith("KeyError: 'no such key'")


def test_a_launched_run_that_is_asked_to_stop_saves_first(lightrft, tmp_path, whole):
    running = launched(tmp_path, *RUN, "--processes", "2", "--run", "run", fault="slow:rollout:0")
    wait_until(lambda: (tmp_path / "happened").exists() or running.poll() is not None, running=running)
    running.send_signal(signal.SIGTERM)
    status, output = running.wait(60), (tmp_path / "launched.txt").read_text()
    assert status == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM after step 1" in output
    goes_on_to_the_same_end(lightrft, whole)


def test_when_one_rank_is_asked_to_stop_all_save_and_stop(lightrft, tmp_path, whole):
    both = ranks(lightrft, *RUN, "--run", "run", fault="slow:rollout:0")
    wait_until((tmp_path / "happened").exists, running=both[0])
    both[1].send(signal.SIGINT)
    assert [rank.wait().status for rank in both] == [128 + signal.SIGINT] * 2
    goes_on_to_the_same_end(lightrft, whole)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--gpus", "0"], "--gpus 0: must be at least 1"),
        (["--gpus", "512"], "--gpus 512: torch finds"),
        (["--gpus", "1", "--processes", "1"], "take one"),
        (["--processes", "two"], "--processes two: needs a number"),
        (["--processes", "2"], "strategy.backend=single is for one process"),
        (["--processes", "2", "--strategy.device", "cuda"], "Use --gpus 2"),
    ],
)
def test_what_cannot_be_started_is_told_before_anything_is(lightrft, tmp_path, flags, complaint):
    assert complaint in lightrft("train", "tiny", *PLAIN, "--run", "run", *flags, status=2)
    assert not (tmp_path / "run").exists()


# -- the disk ----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_torn_while_written_is_passed_over(lightrft, tmp_path, whole):
    """Killed in the middle of writing on one rank, and the last one cut by the disk besides."""
    ended(lightrft, *RUN, "--run", "run", fault="kill:train:0")
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    shutil.copytree(newest, newest.with_name(".tmp-step-000002-1"))
    torn = shutil.copytree(newest, newest.with_name("step-000003"))
    largest = max((f for f in torn.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    goes_on_to_the_same_end(lightrft, whole)
    assert "is not used" in (tmp_path / "run" / "log.txt").read_text()


def test_a_disk_that_is_full_while_saving_ends_all_ranks_and_the_run_goes_on_when_there_is_room(
    lightrft, tmp_path, whole
):
    disk = tmp_path / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        done = [rank.wait() for rank in ranks(lightrft, *RUN, "--run", "run")]
        assert 0 not in [d.status for d in done]
        assert (done[0].output + done[1].output).count("the disk is full") == 1
        subprocess.run(["mount", "-o", "remount,size=80m", str(disk)], check=True)
        goes_on_to_the_same_end(lightrft, whole)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# -- the network -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable: their names."""
    names = [f"lightrft-{os.getpid()}-{i}" for i in (0, 1)]
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ends = [f"lrft{os.getpid() % 100000}{i}" for i in "ab"]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "link", "set", end, "name", "cable")
            ip("-n", name, "addr", "add", address, "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    else:
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_when_the_cable_between_two_hosts_is_cut_both_sides_end_and_the_run_can_go_on(
    lightrft, tmp_path, whole, two_hosts
):
    flags = ["--run", "run", "--strategy.timeout-seconds", "8"]
    outputs = [tmp_path / f"host-{i}.txt" for i in (0, 1)]
    shared = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29533"}
    shared |= {"GLOO_SOCKET_IFNAME": "cable", "FAULT": "slow:rollout:0", "LOCAL_RANK": "0"}
    hosts = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "lightrft", *RUN, *flags],
            cwd=tmp_path,
            env=shared | {"RANK": str(rank)},
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, (name, output) in enumerate(zip(two_hosts, outputs, strict=True))
    ]
    try:
        wait_until(lambda: (tmp_path / "happened").exists() or hosts[0].poll() is not None, running=hosts[0])
        subprocess.run(["ip", "-n", two_hosts[1], "link", "set", "cable", "down"], check=True)
        start = time.monotonic()
        statuses = [host.wait(8 + QUICK) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    shown = outputs[0].read_text() + (tmp_path / "run" / "logs" / "rank-1.txt").read_text()
    assert 0 not in statuses
    assert time.monotonic() - start < 8 + QUICK
    assert "strategy.timeout_seconds=8" in shown or "the connection failed" in shown or "is gone" in shown
    assert steps(tmp_path / "run")[-1]["step"] == 1
    goes_on_to_the_same_end(lightrft, whole)
