"""Terminals, pipes and files that take no more text: nothing that breaks printing ends a run or loses a step."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys

import pytest
from rich.console import Console

from lightrft.config import Config, layers
from lightrft.console.progress import Progress, report
from lightrft.utils.interrupt import Interrupt, Stopped
from lightrft.utils.output import Guarded, guarded_output
from tests.e2e.runs import environment


def piped():
    """A stream into a pipe, and the end to read from."""
    reads, writes = os.pipe()
    return reads, open(writes, "w", encoding="utf-8")


def cli(program, *args):
    """A command line in the hands of a shell, which does `program` with its output."""
    command = f"{sys.executable} -m lightrft {' '.join(args)} {program}"
    shell = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(shell, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_becomes_a_question_mark(encoding, tmp_path):
    raw = io.BytesIO()
    out = Guarded(io.TextIOWrapper(raw, encoding=encoding))
    config = layers.load(["tiny"], Config)
    sample = {"question": "2 × 3 → ?", "target": "六", "before": "é\ud800", "after": "六"}
    sample |= {"before_reward": 0.0, "after_reward": 1.0}
    with Progress(config, 2, run=tmp_path / "a·b", console=Console(file=out)) as progress:
        progress.step(1, {"reward/mean": 0.5})
    report({"seconds": 1, "steps": 1}, [sample], tmp_path, console=Console(file=out))
    out.flush()
    assert "reward 0.500" in raw.getvalue().decode(encoding)
    assert out.lost is None


def test_a_reader_that_leaves_is_told_once_in_the_log(caplog):
    reads, stream = piped()
    out = Guarded(stream)
    os.close(reads)
    with caplog.at_level(logging.WARNING, "lightrft"):
        for _ in range(3):
            out.write("x\n")
            out.flush()
    assert [r.getMessage().partition(" (")[0] for r in caplog.records] == ["nothing more is printed"]
    assert not out.is_cut
    stream.close()  # does not fail either


def test_a_full_disk_under_the_output_is_no_error_of_who_prints():
    stream = open("/dev/full", "w")  # noqa: SIM115  # closed below, which must not fail
    out = Guarded(stream)
    Console(file=out).print("x")
    out.flush()
    assert out.is_cut
    stream.close()


def test_a_terminal_that_takes_no_more_at_once_is_waited_for():
    """What came at that moment may be cut; what comes later is whole."""
    reads, stream = piped()
    os.set_blocking(stream.fileno(), False)
    out = Guarded(stream)
    reader = subprocess.Popen(["tail", "-n", "1"], stdin=reads, stdout=subprocess.PIPE)
    os.close(reads)
    for text in ("x" * 200_000, "\nthe end\n"):
        out.write(text)
        out.flush()
    assert out.lost is None
    stream.close()
    assert reader.communicate()[0] == b"the end\n"


def test_outputs_are_put_back(capsys):
    before = sys.stdout, sys.stderr
    with guarded_output():
        print("hello")
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "hello\n"


def test_a_hangup_asks_to_stop_and_a_second_one_does_not_hurry():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite itself may run under nohup
    try:
        hung_up_twice()
    finally:
        signal.signal(signal.SIGHUP, before)


def hung_up_twice():
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped, match="SIGHUP") as stopped:
            interrupt.check()
    assert stopped.value.exit_status == 129


def test_under_nohup_a_hangup_is_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupt.check()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("program", ["| head -1", "| true", ">&-", "2>&-"])
def test_a_reader_that_leaves_ends_a_command_well(program):
    done = cli(program, "config", "tiny")
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_is_lost_on_a_full_disk_is_an_error_of_a_command_whose_work_it_is():
    done = cli("> /dev/full", "config", "tiny")
    assert done.returncode == 2
    assert "the output could not be written: [Errno 28]" in done.stderr
