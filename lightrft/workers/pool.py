"""Where functions of users run: child processes with a time limit, or the process itself.

What the functions are for is not known here: a loader, named by import path, makes them inside the child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from lightrft.utils import inline
from lightrft.utils.parent import end_with_descendants
from lightrft.workers.environment import passed_on
from lightrft.workers.process import attempt

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
START_SECONDS = 300.0
"""Longest time a worker may take to import its functions; generous, since user modules may load much."""


@dataclass(frozen=True, slots=True)
class Work:
    """The kind of functions that a pool runs: how a child loads them, and what error texts call them."""

    loader: str
    """Import path "package.module:function" of `(name) -> function of one argument`; imported in the child alone."""
    noun: str
    """One of the functions, for error texts: "reward"."""
    limit: str
    """The option that sets the time limit of a call: "rewards.timeout_seconds"."""
    memory: str
    """The option that sets the memory of a child: "rewards.memory_gb"."""
    settings: Any = None
    """What the loader gets as second argument; None: it gets none."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What a child process may have."""

    memory_gb: float = 0.0
    """Memory, 10^9 bytes; 0: any."""
    variables: tuple[str, ...] = ()
    """Environment variables besides those of environment.py."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function by name, and its argument, which travels pickled."""

    name: str
    argument: Any
    worker: int | None = None
    """Which child process must make it, by place, where it holds what an earlier call left there; None: any."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call gave no result; who may not go on without them raises a RolloutError with this reason."""

    reason: str
    kind: str = field(default="", compare=False)
    """What a log may hold of the reason, where no word of what the call was about may be in it: no text of the argument or of a message; empty: nothing."""


class Runner(Protocol[T_co]):
    """Something that makes calls, of functions whose results are T."""

    def run(self, calls: Sequence[Call]) -> Sequence[T_co | Failure]:
        """Outcomes in the calls' order. What a function raises becomes the Failure of its call."""
        ...

    def close(self) -> None:
        """Lets go of what the runner holds; it makes no call afterwards."""
        ...


class Inline(Generic[T]):
    """Calls in this very process: no time limit, no protection."""

    def __init__(self, functions: Mapping[str, Callable[[Any], T]]) -> None:
        self.functions = functions

    def run(self, calls: Sequence[Call]) -> list[T | Failure]:
        """Outcomes in the calls' order."""
        return [outcome(*attempt(self.functions[call.name], call.argument)) for call in calls]

    def close(self) -> None:
        """Nothing is held."""
        return


class Pool(Generic[T]):
    """Persistent child processes, each with all the named functions; one that hangs is killed and replaced.

    They start at construction without being waited for, and so load while the model does.
    """

    def __init__(
        self,
        work: Work,
        names: Sequence[str],
        workers: int,
        timeout_seconds: float,
        allowed: Allowed = Allowed(),  # it is frozen
    ) -> None:
        self.work = work
        self.names = list(names)
        self.timeout_seconds = timeout_seconds
        self.allowed = allowed
        self.workers: list[Worker[T]] = [self._worker() for _ in range(workers)]

    def run(self, calls: Sequence[Call]) -> list[T | Failure]:
        """Raises ValueError if a function cannot be loaded; whatever happens in a call becomes its Failure."""
        outcomes: dict[int, T | Failure] = {}
        waiting = deque(range(len(calls)))
        busy: dict[int, tuple[int, float]] = {}
        while len(outcomes) < len(calls):
            for place, worker in enumerate(self.workers):
                index = None if place in busy else _next_for(place, waiting, calls)
                if index is not None:
                    worker.ready()
                    worker.send(calls[index])
                    waiting.remove(index)
                    busy[place] = (index, monotonic() + self.timeout_seconds)
            soonest = min(deadline for _, deadline in busy.values())
            wait([self.workers[place].connection for place in busy], max(0.0, soonest - monotonic()))
            for place, (index, deadline) in list(busy.items()):
                worker = self.workers[place]
                if worker.connection.poll():
                    outcomes[index] = worker.receive()
                elif monotonic() >= deadline:
                    late = f"it took longer than {self.work.limit}={self.timeout_seconds:g} and was killed."
                    outcomes[index] = Failure(late, late)
                else:
                    continue
                del busy[place]
                if not worker.healthy or (isinstance(outcomes[index], Failure) and monotonic() >= deadline):
                    worker.end()
                    self.workers[place] = self._worker()
        return [outcomes[index] for index in range(len(calls))]

    def close(self) -> None:
        """Ends all workers and waits until they are gone."""
        for worker in self.workers:
            worker.end()

    def _worker(self) -> Worker[T]:
        return Worker(self.work, self.names, self.allowed)


def _next_for(place: int, waiting: deque[int], calls: Sequence[Call]) -> int | None:
    """The first of the waiting calls that the worker at this place may make."""
    return next((index for index in waiting if calls[index].worker in (None, place)), None)


class Starter:
    """A thread that starts all child processes of this one, for they end with the thread that started them (see parent.py)."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new thread; the old one does not exist in a process that was forked from this."""
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="workers")

    def start(self, connection: Connection, allowed: Allowed) -> subprocess.Popen[bytes]:
        """A child process that takes its orders from a connection."""
        return self.thread.submit(_started, connection.fileno(), allowed).result()


def _started(descriptor: int, allowed: Allowed) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    numbers = (descriptor, os.getpid(), int(allowed.memory_gb * 1e9))
    # A plain program rather than multiprocessing's spawn, which would import the user's main script again; -P
    # keeps the current folder from shadowing installed packages where it does not do so here.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "lightrft.workers.process", *map(str, numbers)],
        env=passed_on(os.environ, allowed.variables) | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,
    )


_STARTER = Starter()
os.register_at_fork(after_in_child=_STARTER.reset)


class Worker(Generic[T]):
    """One child process and the connection to it."""

    def __init__(self, work: Work, names: Sequence[str], allowed: Allowed) -> None:
        self.work = work
        self.allowed = allowed
        given = inline.packed(names, work.noun)
        self.connection, child = Pipe()
        self.process = _STARTER.start(child, allowed)
        child.close()
        self.healthy = True
        self._loaded = False
        self._finalizer = weakref.finalize(self, _end, self.process, self.connection)
        self.connection.send((work.loader, list(names), work.settings, given))

    def ready(self) -> None:
        """Waits until the functions are loaded. ValueError with the child's reason if they cannot be."""
        if self._loaded:
            return
        if not self.connection.poll(START_SECONDS):
            raise RuntimeError(
                f"the {self.work.noun} functions were not imported within {START_SECONDS:g} seconds. Import heavy packages inside the function."
            )
        try:
            kind, message = self.connection.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError(
                f"the process for {self.work.noun}s died while importing the {self.work.noun} functions ({self._exit()})."
            ) from None
        if kind == "error":
            raise ValueError(f"a {self.work.noun} cannot be loaded: {message}")
        self._loaded = True

    def send(self, call: Call) -> None:
        """Begins a call; where the child is gone already, `receive` says so."""
        try:
            self.connection.send((call.name, call.argument))
        except ConnectionError:
            self.healthy = False

    def receive(self) -> T | Failure:
        """The outcome of the call that was sent, waited for; a Failure too if the child died of it."""
        try:
            kind, content = self.connection.recv()
            if kind == "starved":
                self.healthy = False  # what it holds it may never give back
                limit = f"{self.work.memory}={self.allowed.memory_gb:g}"
                told = f"it needed more memory than {limit} and was ended.\n"
                return Failure(*(told + text for text in content))
            found: T | Failure = outcome(kind, content)
            return found
        except (EOFError, ConnectionError):
            self.healthy = False
            died = f"its process died ({self._exit()})."
            return Failure(died, died)

    def end(self) -> None:
        """Kills the process and whatever it started, and waits for it."""
        self._finalizer()

    def _exit(self) -> str:
        code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def outcome(kind: str, content: Any) -> Any:
    """What `attempt` gave: the result, or a Failure."""
    return content if kind == "done" else Failure(*content)


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    if process.poll() is None:
        end_with_descendants(process.pid)
    process.wait()
