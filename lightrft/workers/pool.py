"""Where reward functions run: child processes with a time limit, or the process itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Protocol

from lightrft.rewards.function import Answer, RewardFunction
from lightrft.workers.process import attempt

START_SECONDS = 300.0
"""Longest time a worker may take to import the reward functions; generous, since user modules may load much."""


@dataclass(frozen=True, slots=True)
class Call:
    """One reward function, and the answers it is to judge."""

    name: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call gave no values; who may not go on without them raises a RolloutError with this reason."""

    reason: str


class Runner(Protocol):
    """Something that makes calls; outcomes in the calls' order."""

    def run(self, calls: Sequence[Call]) -> list[list[float] | Failure]: ...

    def close(self) -> None: ...


class Inline:
    """Calls in this very process: no time limit, no protection."""

    def __init__(self, functions: Mapping[str, RewardFunction]) -> None:
        self.functions = functions

    def run(self, calls: Sequence[Call]) -> list[list[float] | Failure]:
        return [outcome(*attempt(self.functions[call.name], call.answers)) for call in calls]

    def close(self) -> None:
        return


class Pool:
    """Persistent child processes, each with all reward functions; one that hangs is killed and replaced.

    They start at construction without being waited for, and so load while the model does.
    """

    def __init__(self, names: Sequence[str], workers: int, timeout_seconds: float) -> None:
        self.names = list(names)
        self.timeout_seconds = timeout_seconds
        self.workers = [Worker(self.names) for _ in range(workers)]

    def run(self, calls: Sequence[Call]) -> list[list[float] | Failure]:
        """Raises ValueError if a reward cannot be loaded; whatever happens in a call becomes its Failure."""
        outcomes: dict[int, list[float] | Failure] = {}
        waiting = deque(range(len(calls)))
        busy: dict[int, tuple[int, float]] = {}
        while len(outcomes) < len(calls):
            for place, worker in enumerate(self.workers):
                if waiting and place not in busy:
                    worker.ready()
                    worker.send(calls[waiting[0]])
                    busy[place] = (waiting.popleft(), monotonic() + self.timeout_seconds)
            soonest = min(deadline for _, deadline in busy.values())
            wait([self.workers[place].connection for place in busy], max(0.0, soonest - monotonic()))
            for place, (index, deadline) in list(busy.items()):
                worker = self.workers[place]
                if worker.connection.poll():
                    outcomes[index] = worker.receive()
                elif monotonic() >= deadline:
                    outcomes[index] = Failure(
                        f"it took longer than rewards.timeout_seconds={self.timeout_seconds:g} and was killed."
                    )
                else:
                    continue
                del busy[place]
                if not worker.healthy or (isinstance(outcomes[index], Failure) and monotonic() >= deadline):
                    worker.end()
                    self.workers[place] = Worker(self.names)
        return [outcomes[index] for index in range(len(calls))]

    def close(self) -> None:
        """Ends all workers and waits until they are gone."""
        for worker in self.workers:
            worker.end()


class Worker:
    """One child process and the connection to it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.connection, child = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # A plain program rather than multiprocessing's spawn, which would import the user's main script again; -P
        # keeps the current folder from shadowing installed packages where it does not do so here.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lightrft.workers.process", str(child.fileno())],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            pass_fds=[child.fileno()],
            start_new_session=True,
        )
        child.close()
        self.healthy = True
        self._loaded = False
        self._finalizer = weakref.finalize(self, _end, self.process, self.connection)
        self.connection.send(list(names))

    def ready(self) -> None:
        """Waits until the functions are loaded. ValueError with the child's reason if they cannot be."""
        if self._loaded:
            return
        if not self.connection.poll(START_SECONDS):
            raise RuntimeError(
                f"the reward functions were not imported within {START_SECONDS:g} seconds. Import heavy packages inside the function."
            )
        try:
            kind, message = self.connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(
                f"the process for rewards died while importing the reward functions ({self._exit()})."
            ) from None
        if kind == "error":
            raise ValueError(f"a reward cannot be loaded: {message}")
        self._loaded = True

    def send(self, call: Call) -> None:
        try:
            self.connection.send((call.name, call.answers))
        except ConnectionError:
            self.healthy = False

    def receive(self) -> list[float] | Failure:
        try:
            return outcome(*self.connection.recv())
        except (EOFError, ConnectionError):
            self.healthy = False
            return Failure(f"its process died ({self._exit()}).")

    def end(self) -> None:
        """Kills the process and whatever it started, and waits for it."""
        self._finalizer()

    def _exit(self) -> str:
        code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def outcome(kind: str, content: list[float] | str) -> list[float] | Failure:
    """What `attempt` gave, as values or Failure."""
    return Failure(content) if isinstance(content, str) else content


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
