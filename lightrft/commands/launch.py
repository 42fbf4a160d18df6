"""`--gpus N`, `--processes N`, `--max-restarts K`: starts the processes of a run on this machine through torch's own launcher.

This process has no model: it decides the run folder, passes signals on, and says at the end what went wrong first. On several
machines torchrun, Slurm, Ray or SkyPilot start the processes (docs/distributed.md), and nothing here is used.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from lightrft.config import Config, DPOConfig, RewardTrainingConfig, SFTConfig
from lightrft.runs.folder import NEW_RUN
from lightrft.utils.failures import VERDICTS
from lightrft.utils.interrupt import Stopped, asking_signals
from lightrft.utils.parent import PARENT

if TYPE_CHECKING:
    import torch.distributed as dist

    from lightrft.commands.lookout import Lookout

UNEXPLAINED = {"message": "lightrft: a process of the run ended, and none was left to say why.", "status": 1}
"""The verdict on an attempt of which none was written: all its processes were ended before they could."""
C = TypeVar("C", Config, SFTConfig, RewardTrainingConfig, DPOConfig)


@dataclass(frozen=True)
class Launch:
    """How many processes, on what, and how often they may be started again."""

    gpus: int | None = None
    processes: int | None = None
    max_restarts: int = 0

    def __post_init__(self) -> None:
        for flag, count, least in (
            ("--gpus", self.gpus, 1),
            ("--processes", self.processes, 1),
            ("--max-restarts", self.max_restarts, 0),
        ):
            if count is not None and count < least:
                raise ValueError(f"{flag} {count}: must be at least {least}.")
        if self.gpus and self.processes:
            raise ValueError(
                "--gpus and --processes: take one. --gpus has a process for each GPU, --processes are on the CPU."
            )

    @property
    def is_wanted(self) -> bool:
        """Whether this process is to start others."""
        return bool(self.gpus or self.processes or self.max_restarts)

    @property
    def size(self) -> int:
        """Processes to start."""
        return self.gpus or self.processes or 1

    def placed(self, config: C) -> C:
        """The settings with the device that was asked for. ValueError if there are not so many, or settings say otherwise."""
        device = config.strategy.device
        if self.processes:
            if device not in ("auto", "cpu"):
                raise ValueError(
                    f"--processes {self.processes} are on the CPU, but strategy.device={device}. Use --gpus {self.processes}."
                )
            return replace(config, strategy=replace(config.strategy, device="cpu"))
        if self.gpus:
            if device == "cpu":
                raise ValueError(
                    f"--gpus {self.gpus} with strategy.device=cpu. Set --strategy.device auto, or use --processes."
                )
            from lightrft.utils.device import num_accelerators

            found = num_accelerators()
            if self.gpus > found:
                raise ValueError(
                    f"--gpus {self.gpus}: torch finds {found} here. Set --gpus to at most that, or use --processes for the CPU."
                )
        return config


@dataclass
class _Agent(threading.Thread):
    """torch's agent. Beside the main thread, so that signals are ours: its own handling allows 30 seconds for saving."""

    launch: Launch
    environment: Sequence[str]
    args: Sequence[str]
    folder: Path
    """For what torch's agent writes."""
    store: dist.TCPStore | None = field(default=None, init=False)
    """Where the processes find each other, once it is there."""
    failure: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        super().__init__(name="agent", daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        from lightrft.commands import rendezvous

        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it in our words
        self.store = rendezvous.loopback_store()
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.launch.size,
            run_id=f"lightrft-{os.getpid()}",
            rdzv_backend=rendezvous.BACKEND,
            rdzv_configs={"store": self.store},
            local_addr=rendezvous.LOOPBACK,
            logs_specs=DefaultLogsSpecs(log_dir=str(self.folder)),
            max_restarts=self.launch.max_restarts,
            monitor_interval=0.1,
        )
        try:
            environment = [*self.environment, *(f"{k}={v}" for k, v in rendezvous.loopback_only().items())]
            command = [*environment, sys.executable, "-u", "-P", "-m", "lightrft", *self.args]
            elastic_launch(config, "env")(*command)
        except Exception as error:
            self.failure = error


def start(launch: Launch, args: Sequence[str], *, timeout_seconds: float, new_run: str = "") -> int:
    """Runs `lightrft ARGS` in several processes; returns the exit status of the first that failed, or 0.

    timeout_seconds: strategy.timeout_seconds; a run in which no process gives a sign for longer is ended.
    new_run: the settings of the new run that they are to begin (RunFolder.settings_digest).
    SIGTERM, SIGINT and SIGHUP go to all of them, which save and stop; raises Stopped then.
    """
    with tempfile.TemporaryDirectory(prefix="lightrft-") as scratch:
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // launch.size))
        inherited = {VERDICTS: scratch, PARENT: str(os.getpid()), "OMP_NUM_THREADS": threads}
        inherited |= {NEW_RUN: new_run} if new_run else {}
        agent = _Agent(launch, [f"{name}={value}" for name, value in inherited.items()], args, Path(scratch))
        told, killed = _attend(agent, Path(scratch), launch.max_restarts, timeout_seconds)
    return _outcome(agent.failure, told, killed)


def _attend(
    agent: _Agent, verdicts: Path, max_restarts: int, timeout_seconds: float
) -> tuple[dict[str, Any], set[int]]:
    """Passes signals on, ends what is stuck and tells of restarts until all is over.

    Returns the last verdict, empty if there is none, and the processes that were ended here.
    """
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, pass_on) for number in asking_signals()}
    sent: dict[int, int] = {}
    told: dict[str, Any] = {}
    attempt = 0
    lookout: Lookout | None = None
    try:
        agent.start()
        while agent.is_alive():
            agent.join(0.1)
            children = psutil.Process().children()
            for child in children if asked else []:
                for number in asked[sent.get(child.pid, 0) :]:
                    _send(child, number)
                sent[child.pid] = len(asked)
            lookout = lookout or _lookout(agent, verdicts, timeout_seconds)
            if lookout is not None:
                lookout.look(children)
            newest = 0 if lookout is None else lookout.newest_attempt
            while (file := verdicts / f"{attempt}.json").exists() or attempt < newest:
                told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else UNEXPLAINED
                if "message" in told and attempt < max_restarts and not asked:
                    print(
                        f"{told['message']}\nlightrft: starting again ({attempt + 1} of {max_restarts})",
                        file=sys.stderr,
                    )
                attempt += 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise Stopped(signal.Signals(asked[0]).name)
    return told, lookout.killed if lookout is not None else set()


def _lookout(agent: _Agent, verdicts: Path, timeout_seconds: float) -> Lookout | None:
    """A lookout over the processes; None until they have a store."""
    if agent.store is None:
        return None
    from lightrft.commands.lookout import Lookout

    return Lookout(agent.store, verdicts, timeout_seconds)


def _outcome(failure: Exception | None, told: dict[str, Any], killed: Container[int]) -> int:
    """Says why the run failed, if it did; returns the exit status. killed: processes that were ended for another's failure."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if failure is None:
        if "stopped" in told:
            raise Stopped(told["stopped"])
        return 0
    if not isinstance(failure, ChildFailedError):
        raise failure
    rank, first = failure.get_first_failure()
    by_signal = first.exitcode < 0 and first.pid not in killed
    if by_signal:
        name = signal.Signals(-first.exitcode).name
        kernel = " The kernel kills so when memory is out: see `dmesg`." if name == "SIGKILL" else ""
        print(f"lightrft: rank {rank} was ended by {name}.{kernel}", file=sys.stderr)
    if "message" in told:
        print(told["message"], file=sys.stderr)
    return 128 - first.exitcode if by_signal else int(told.get("status", abs(first.exitcode)))


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _cores() -> int:
    """Cores that this process may use."""
    return (
        len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else os.cpu_count() or 1
    )
