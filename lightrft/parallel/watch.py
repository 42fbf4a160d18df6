"""Two threads that look after this rank and the others: who stands where, who has failed, who is gone.

Ranks tell each other through the store of the process group (a few keys; nothing on the main thread's path):

    here/RANK   where the rank is, and a count that shows it alive; written when a phase begins and once a second
    failure     the first failure of the run; whoever fails later is a consequence
    stop        the signal that asked a rank to stop, for the others to stop with it
    meet/RANK   ranks that failed together and could still save together
    left/RANK   the rank has come to its end
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil
import torch.distributed as dist

from lightrft.parallel.status import STATUS
from lightrft.utils.failures import tell
from lightrft.utils.interrupt import Stopped

T = TypeVar("T")
POLL_SECONDS = 1.0
GRACE_SECONDS = 5.0
"""Time that the main thread has to come to a good end after another rank has failed."""


class PeerError(RuntimeError):
    """Another rank has failed or is gone; what happened there is the message."""


class BrokenError(PeerError):
    """An exchange with other ranks failed: no other can succeed any more."""


@dataclass
class Watch:
    """The watch of one rank; its threads run from `start` to `stop`."""

    rank: int
    size: int
    store: dist.Store
    """A connection of its own: the main thread may be stuck in another."""
    timeout_seconds: float
    record: Path | None = None
    """RUN/log.txt, where the first failure belongs."""
    output: Path | None = None
    """The file for what this rank prints, once the run has one."""
    terminal: TextIO = field(default_factory=lambda: sys.stderr)
    """Where people read, also on a rank whose output goes to a file."""
    news: Exception | None = None
    """What happened on another rank, for the main thread to raise where it works by itself."""
    farewell: Callable[[str], None] | None = None
    """Called with the reason where this process is ended from within, see `_end`; is to return within seconds."""
    failing: bool = False
    """The main thread handles a failure: it is left alone for as long as it gets on."""
    explained: tuple[Exception, Exception] | None = None
    """The last failure of a collective of the backend on this rank, and the error that says what it comes from (explain.understood)."""
    _peers: dict[int, psutil.Process | None] = field(default_factory=dict)
    """Rank -> process, of other ranks on this machine; None for one that was gone from the start."""
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _alone: bool = False
    """Whether another rank is gone."""
    _told: bool = False
    """Whether this rank has told the cause: the same failure may come by twice."""
    _silent: set[int] | None = None
    """Ranks that gave no sign when they were looked for."""
    _noticed: float = 0.0
    """When the failure of another rank was heard of."""
    _heard: float = 0.0
    """When the store last answered."""

    def start(self) -> None:
        """Learns who is on this machine, and begins to watch; called by all ranks."""
        machine = _machine()
        self.store.set(f"machine/{self.rank}", json.dumps([machine, os.getpid()]))
        for rank in range(self.size):
            theirs, number = json.loads(self.store.get(f"machine/{rank}"))
            if rank != self.rank and machine and theirs == machine:
                self._peers[rank] = _process(number)
        STATUS.heartbeat()
        for work in (self._talk, self._guard):
            self._start(work)

    def stop(self) -> bool:
        """Nothing is watched any more; False if a thread is stuck in a dead connection, so that Python cannot end in order."""
        self._over.set()
        STATUS.changed.set()
        for thread in self._threads:
            thread.join(POLL_SECONDS)
        return not any(thread.is_alive() for thread in self._threads)

    def ask_to_stop(self, signal_name: str) -> None:
        """Lets the other ranks know that this one was asked to stop."""
        self._ask(lambda: self.store.set("stop", signal_name), None)

    def leave(self) -> None:
        """Says that this rank ends as it should."""
        self._ask(lambda: self.store.set(f"left/{self.rank}", ""), None)

    def blame(self, message: str, *, status: int = 2, details: str = "", rank: int | None = None) -> bool:
        """Publishes a failure of this rank, or of `rank`; True if it is the first of the run, and so the cause.

        The cause is told here and now, on the terminal and, with `details`, in RUN/log.txt: later there may be no time. A
        rank that cannot reach the others tells its failure too, for it may be the only one to know.
        """
        blamed = self.rank if rank is None else rank
        mine = json.dumps({"rank": blamed, "message": message, "where": str(STATUS)})
        first = self._ask(lambda: self.store.compare_set("failure", "", mine).decode(), mine) == mine
        if first and not self._told:
            self._told = True
            details = f"rank {blamed}: {details or message}"
            tell(message, status=status, details=details, log=self.record, to=self.terminal)
        return first

    def cause(self, patience: float) -> dict[str, Any] | None:
        """The first failure of the run, waited for so many seconds at most."""
        deadline = time.monotonic() + patience
        while (found := self._ask(self._failure, None)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return found

    def whereabouts(self) -> dict[int, dict[str, Any]]:
        """Where each rank was when it last told, by rank; those that never did are left out."""

        def read() -> dict[int, dict[str, Any]]:
            known = [r for r in range(self.size) if self.store.check([f"here/{r}"])]
            return {r: json.loads(self.store.get(f"here/{r}")) for r in known}

        return self._ask(read, {})

    def silent(self) -> set[int]:
        """Ranks whose watch no longer gives signs: they were stopped, or hold Python's lock. Looks once, which takes seconds."""
        if self._silent is None:
            before = {rank: word["count"] for rank, word in self.whereabouts().items()}
            time.sleep(2.5 * POLL_SECONDS)
            after = self.whereabouts()
            self._silent = {r for r, count in before.items() if r in after and after[r]["count"] == count}
        return self._silent

    def _stopped(self) -> str:
        """Sentences that name the other ranks that give no sign; empty if all do."""
        gone = sorted(self.silent() - {self.rank})
        return "".join(f"Rank {rank} did not come and gives no sign. " for rank in gone)

    def others(self) -> str:
        """Where the other ranks are, as a sentence; empty if none is known."""
        known = {r: w["where"] for r, w in self.whereabouts().items() if r != self.rank}
        return "".join(f"Rank {r}: {where}. " for r, where in list(known.items())[:16])

    def meet(self, state: str) -> bool:
        """Whether all ranks have come here within a few seconds, and all with the same state."""
        self.failing = True
        names = [f"meet/{r}" for r in range(self.size)]

        def read() -> list[bytes]:
            self.store.set(f"meet/{self.rank}", state)
            while not self.store.check(names) and not self._alone:
                time.sleep(0.1)
            return [] if self._alone else self.store.multi_get(names)

        nobody: list[bytes] = []
        found = self._ask(read, nobody)
        return bool(found) and all(theirs.decode() == state for theirs in found)

    def _ask(self, question: Callable[[], T], otherwise: T) -> T:
        """What the store answers; `otherwise` if it is gone, or does not answer soon (a dead network link gives no error)."""
        answers: list[T] = []

        def ask() -> None:
            with suppress(dist.DistError):
                answers.append(question())

        self._start(ask).join(GRACE_SECONDS)
        return answers[0] if answers else otherwise

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"watch: {work.__name__}", daemon=True)
        thread.start()
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        return thread

    def _failure(self) -> dict[str, Any] | None:
        return json.loads(self.store.get("failure")) if self.store.check(["failure"]) else None

    def _talk(self) -> None:
        """Tells others where this rank is, and hears of them."""
        heard = 0.0
        for count in itertools.count():
            STATUS.changed.wait(POLL_SECONDS)
            STATUS.changed.clear()
            if self._over.is_set():
                return
            try:
                word = {"where": str(STATUS), "call": STATUS.call, "calls": STATUS.calls, "count": count}
                self.store.set(f"here/{self.rank}", json.dumps(word))
                if time.monotonic() - heard > POLL_SECONDS:
                    self._hear()
                    heard = self._heard = time.monotonic()
            except dist.DistError:
                # At the end of a run that is as it should be: then this thread is stopped at once.
                if not self._over.wait(GRACE_SECONDS):
                    self._end(
                        "the process that connected the ranks (the first rank, or the launcher) is gone"
                    )

    def _hear(self) -> None:
        if self.news is None and self.store.check(["stop"]):
            self.news = Stopped(self.store.get("stop").decode())
        if not self._noticed and (failure := self._failure()) and failure["rank"] != self.rank:
            self._noticed = time.monotonic()
            self.news = PeerError(f"rank {failure['rank']} failed ({failure['where']}): {failure['message']}")
        for rank in [rank for rank, process in self._peers.items() if _is_gone(process)]:
            del self._peers[rank]
            if not self.store.check([f"left/{rank}"]):
                self._lost(rank)

    def _lost(self, rank: int) -> None:
        self._alone = True
        if self.cause(patience=0.5) is not None:  # it has said why
            return
        where = self.whereabouts().get(rank, {}).get("where", "before its first phase")
        message = f"rank {rank} ended without a word ({where}): killed, out of memory, or crashed"
        self.blame(f"lightrft: {message}. The run can go on from its last checkpoint.", status=1, rank=rank)
        if not self.failing:
            self._end(message)

    def _guard(self) -> None:
        """Ends this process where it can neither get on nor come to an end by itself."""
        self._heard = time.monotonic()
        most = most_seconds(self.timeout_seconds)
        while not self._over.wait(POLL_SECONDS):
            now = time.monotonic()
            if self._noticed and not self.failing and now - self._noticed > GRACE_SECONDS:
                self._end(f"another rank has failed: {self.news}")
            if now - STATUS.moved > most or now - self._heard > most:
                what = (
                    f"did not get on for {now - STATUS.moved:.0f} s"
                    if now - STATUS.moved > most
                    else "is cut off from the others"
                )
                message = (
                    f"rank {self.rank} {what} ({STATUS}). {self._stopped()}{self.others()}Its stack is in RUN/logs. "
                    f"If it only needs longer, raise strategy.timeout_seconds={self.timeout_seconds:g}."
                )
                self.blame(f"lightrft: {message}")
                self._end(message)

    def _end(self, why: str) -> None:
        """Ends this process from within, whatever its main thread is stuck in."""
        place = self.output or os.devnull
        with suppress(OSError), open(place, "a", encoding="utf-8") as file:
            file.write(f"rank {self.rank} ends: {why}\n")
            file.flush()
            faulthandler.dump_traceback(file)
        if self.farewell is not None:
            with suppress(Exception):
                self.farewell(why)
        os._exit(1)


def most_seconds(timeout_seconds: float) -> float:
    """Longest time without a sign of life: later than the limit of exchanges, whose errors say more."""
    return 1.1 * timeout_seconds + GRACE_SECONDS


def of_attempt(store: dist.Store, attempt: int) -> dist.Store:
    """The part of a launcher's store for one attempt at the run: the store outlives a restart, with all that was said in it."""
    return dist.PrefixStore(f"attempt-{attempt}", store)


def for_watches(store: dist.Store) -> dist.Store:
    """The part of an attempt's store in which watches talk."""
    return dist.PrefixStore("watch", store)


def here(store: dist.Store, rank: int) -> str:
    """The last word of a rank's watch in an attempt's store; empty if there is none."""
    words, name = for_watches(store), f"here/{rank}"
    return words.get(name).decode() if words.check([name]) else ""


def _machine() -> str:
    """A name of this machine under which process numbers mean the same; empty if there is no telling."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process(number: int) -> psutil.Process | None:
    try:
        return psutil.Process(number)
    except psutil.NoSuchProcess:
        return None


def _is_gone(process: psutil.Process | None) -> bool:
    try:
        return process is None or not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
