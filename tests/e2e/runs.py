"""Runs of LightRFT in processes of their own, and what to look for in a run folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lightrft.datasets import response_file

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ["--rewards.workers", "0", "--log.tensorboard=false", "--log.curves=false", "--log.progress=false"]
"""What a test about something else does without: processes for rewards, TensorBoard, curves as a picture, a live picture."""
FOUR_STEPS = str(Path(__file__).with_name("four_steps.yaml"))
"""A layer over `tiny`, which by itself trains for as long as it takes to see it learn."""
DRAWING = (
    "digits_sd3", *PLAIN, "--rollout.prompts-per-step", "4", "--rollout.group-size", "4", "--evaluate.samples", "2",
    "--evaluate.limit", "4", "--checkpoint.every-steps", "2",
)  # fmt: skip
"""A small run of a model that draws."""
GIVEN_PICTURES = (
    "digits_sft", "--batch-size", "8", "--evaluate.limit", "16", "--checkpoint.every-steps", "1", "--optimizer.warmup-steps", "0",
    "--log.tensorboard=false", "--log.curves=false", "--log.progress=false", "--optimizer.schedule", "constant",
)  # fmt: skip
"""A small run of a model that learns to draw given pictures."""
MEASURED = (
    "seconds/",
    "straggler/",
    "memory/",
    "rollout/tokens_per_second",
    "train/tokens_per_second",
    "train/teraflops_per_device",
    "train/mfu",
    "time",
)
"""Beginnings of metrics that differ between two runs that are otherwise the same."""
PACKING = ("update/", "counts/tokens_read", "counts/teraflop")
"""Beginnings of metrics that tell how responses were packed."""


def short(args: Sequence[object]) -> tuple[object, ...]:
    """The command with FOUR_STEPS behind the layer `tiny`, once."""
    layers = list(itertools.takewhile(lambda word: not str(word).startswith("-"), args))
    if layers[:1] != ["train"] or "tiny" not in layers or FOUR_STEPS in layers:
        return tuple(args)
    place = layers.index("tiny") + 1
    return (*args[:place], FOUR_STEPS, *args[place:])


class Server:
    """The client's side of server.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Lightrft:
    """Runs command lines, each in a process of its own, in the folder `cwd`."""

    server: Server
    cwd: Path
    _count: int = field(default=0)

    def start(self, *args: object, env: dict[str, str] | None = None) -> Started:
        """Begins a command, with more environment variables if given. Training on the layer `tiny` takes FOUR_STEPS."""
        args = short(args)
        self._count += 1
        output = self.cwd / f"output-{self._count}.txt"
        answer = self.server.ask(
            args=[str(a) for a in args], cwd=str(self.cwd), output=str(output), env=env or {}
        )
        return Started(self.server, answer["pid"], output)

    def __call__(self, *args: object, status: int = 0) -> str:
        """Runs a command to its end, which must have this status; returns what it printed."""
        done = self.start(*args).wait()
        assert done.status == status, f"exit status {done.status}, not {status}\n{done.output}"
        return done.output


@dataclass
class Started:
    """A command under way."""

    server: Server
    pid: int
    _output: Path

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> Finished:
        status = self.server.ask(wait=self.pid)["status"]
        return Finished(status, self.output)

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8") if self._output.exists() else ""


@dataclass(frozen=True)
class Finished:
    """How a command ended (negative: the signal that killed it) and what it printed."""

    status: int
    output: str


def cold(*args: object, cwd: Path) -> Finished:
    """The command line as a user starts it: a fresh interpreter, everything imported anew, another hash seed."""
    command = [sys.executable, "-m", "lightrft", *(str(a) for a in short(args))]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    return Finished(done.returncode, done.stdout + done.stderr)


def environment() -> dict[str, str]:
    """This process's, with our code found first, on the CPU, no width or colour of the terminal in the output."""
    ours = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "LIGHTRFT_TRACEBACK": "",
    }
    return {**os.environ, **ours, "COLUMNS": "200", "TERM": "dumb"}


def wait_until(condition: Callable[[], bool], *, running: Started, seconds: float = 120) -> None:
    """Returns once the condition holds; fails, showing the output, after too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} seconds in vain\n{running.output}"
        time.sleep(0.01)


def rows(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, without what was measured by the clock or in bytes of memory."""
    lines = (
        (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    )  # behind them one being written
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(MEASURED)} for line in lines]


def steps(run: Path) -> list[dict[str, Any]]:
    """The rows of training steps."""
    return [row for row in rows(run) if "reward/mean" in row]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def model_bytes(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def cut_back(run: Path, copy: Path, *, step: int) -> None:
    """A copy of a run as it lies there after it died behind that step, of which it has a checkpoint."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "summary.json"))
    for checkpoint in (copy / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)
    assert any((copy / "checkpoints").iterdir())


def answers(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Every saved answer, with its tokens' log-probs and advantages: file name -> rows."""
    found = {file: response_file.read(file) for file in run.glob("trajectories/*.parquet")}
    for file in run.glob("evaluation/*.jsonl"):
        found[file] = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    return {str(file.relative_to(run)): found[file] for file in sorted(found)}


def assert_same_run(one: Path, other: Path) -> None:
    """Same weights bit for bit, same metrics digit by digit, same answers."""
    assert rows(one) == rows(other)
    mine, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert [n for n in mine if not mine[n].equal(theirs[n])] == []
    assert model_bytes(one) == model_bytes(other)
    assert answers(one) == answers(other)
