"""Who else runs this program: rank, size, and the few numbers that ranks exchange. No-op for a single process.

Every exchange is known by its place in the program. One that fails or takes longer than `strategy.timeout_seconds` raises
PeerError: it names this rank, the exchange, phase and step, and the ranks that did not come with where they are instead.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightrft.parallel.status import STATUS
from lightrft.parallel.watch import BrokenError, PeerError, Watch
from lightrft.utils.device import collective_backend, use
from lightrft.utils.failures import told
from lightrft.utils.interrupt import Stopped

T = TypeVar("T")
PATIENCE_SECONDS = 4.0
"""After a failed exchange: time in which the rank that is to blame may still say why."""


@dataclass(frozen=True, slots=True)
class World:
    """All processes of a run. Every method is called by all ranks or by none."""

    rank: int = 0
    size: int = 1
    team: Any = None
    """The process group of the ranks that compute micro-batches together with this one (strategy.sequence_parallel); None: none."""

    _watch: ClassVar[Watch | None] = None
    """Of this process, between `joined` and its end."""

    @classmethod
    def current(cls, sequence_parallel: int = 1) -> World:
        """The initialised process group, or a world of one; neighbouring ranks make teams of `sequence_parallel`.

        With teams it is called by all ranks. ValueError if the ranks cannot be shared out.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(team=_team(1, sequence_parallel))
        rank, size = dist.get_rank(), dist.get_world_size()
        return cls(rank, size, _team(size, sequence_parallel))

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device, timeout_seconds: float) -> Iterator[World]:
        """Inside, this process is one of $WORLD_SIZE that were started together; alone where that is 1 or not set.

        The only place that makes and ends the process group. If the block raises, the other ranks come to know why and
        end as well; the first failure of all is told once, on the terminal and in RUN/log.txt, and then SystemExit.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 and "MASTER_ADDR" not in os.environ:
            yield cls()
            return
        use(device)
        watch = cls._watch = _meet(device, timeout_seconds)
        before = signal.signal(signal.SIGTERM, partial(_asked_to_end, watch))
        try:
            yield cls.current()
            _part(watch)
        except Stopped:
            _part(watch)
            raise
        except Exception as error:
            status = _blame(watch, _understood(watch, error))
            if not watch.stop():
                os._exit(status)
            raise SystemExit(status) from error
        finally:
            watch.stop()
            cls._watch = None
            signal.signal(signal.SIGTERM, before)

    @property
    def is_first(self) -> bool:
        """True on the rank that writes what is written once."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks."""
        if self.size > 1:
            values = values.clone()
            with self._exchange("sum"):
                dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """Largest over ranks."""
        if self.size > 1:
            tensor = torch.tensor(value, dtype=torch.float64)
            with self._exchange("max"):
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
            return float(tensor)
        return value

    def all(self, value: bool) -> bool:
        """True if true on every rank."""
        return self.max(0.0 if value else 1.0) == 0.0

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank, on every rank."""
        if self.size > 1:
            values: list[Any] = [None] * self.size
            with self._exchange("gather"):
                dist.all_gather_object(values, value)
            return values
        return [value]

    def sum_by_name(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks by name; a rank need not have every name."""
        totals: dict[str, float] = {}
        for one in self.gather(dict(numbers)):
            for name, value in one.items():
                totals[name] = totals.get(name, 0.0) + value
        return dict(sorted(totals.items()))

    def max_by_name(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Maxima over ranks by name; a rank need not have every name."""
        maxima: dict[str, float] = {}
        for one in self.gather(dict(numbers)):
            for name, value in one.items():
                maxima[name] = max(maxima.get(name, value), value)
        return dict(sorted(maxima.items()))

    def all_to_all(self, outgoing: Sequence[Any]) -> list[Any]:
        """outgoing[r] goes to rank r; returns what came, by the rank it came from. Anything that pickles; None is not sent."""
        if self.size == 1:
            return list(outgoing)
        parcels = [
            None if x is None else torch.frombuffer(bytearray(pickle.dumps(x)), dtype=torch.uint8)
            for x in outgoing
        ]
        sizes = self.gather([0 if p is None else p.numel() for p in parcels])
        incoming = [torch.empty(sizes[r][self.rank], dtype=torch.uint8) for r in range(self.size)]
        others = [r for r in range(self.size) if r != self.rank]
        with self._exchange("all_to_all"):
            work = [dist.irecv(incoming[r], r) for r in others if incoming[r].numel()]
            work += [dist.isend(p, r) for r in others if (p := parcels[r]) is not None]
            for one in work:
                if one is not None:  # gloo always gives one
                    one.wait()
        return [
            outgoing[r] if r == self.rank else pickle.loads(t.numpy().tobytes()) if t.numel() else None
            for r, t in enumerate(incoming)
        ]

    def limit(self, group: Any) -> None:
        """Gives a group that was made elsewhere the run's time limit; groups do not take it over from the default one."""
        if (limit := _time_limit()) is not None:
            dist.distributed_c10d._set_pg_timeout(limit, group)

    def new_group(self) -> Any:
        """All ranks once more, over gloo, for a thread that exchanges while the program goes on; None for a world of one."""
        return dist.new_group(backend="gloo", timeout=_time_limit()) if self.size > 1 else None

    @property
    def team_size(self) -> int:
        """Ranks that compute a micro-batch together."""
        return 1 if self.team is None else int(self.team.size())

    def team_sum(self, value: float) -> float:
        """Sum over the ranks of this rank's team."""
        if self.team is None:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        with self._exchange("team_sum"):
            dist.all_reduce(tensor, group=self.team)
        return float(tensor)

    def broadcast_in_turn(self, value: T) -> Iterator[tuple[T, bool]]:
        """The value of each rank of this rank's team in turn, and whether it is its own. Anything that pickles."""
        if self.team is None:
            yield value, True
            return
        for member in range(self.team_size):
            is_own = member == self.team.rank()
            parcel = [value if is_own else None]
            with self._exchange("broadcast_in_turn"):
                dist.broadcast_object_list(parcel, group=self.team, group_src=member)
            yield (value if is_own else parcel[0]), is_own  # type: ignore[misc]  # it came from a rank that has one

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            with self._exchange("barrier"):
                dist.barrier()

    @contextmanager
    def independent(self) -> Iterator[None]:
        """A part in which every rank works by itself, without collectives; ranks meet at its end.

        If it raises on one rank it raises on all: Stopped if that is what it was, else PeerError on the others. So all are
        still together afterwards, and can save.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
            self._spread(error)
        if self.size > 1:
            try:
                reports = self.gather(None if failure is None else _report(failure))
            except PeerError:
                if failure is None:
                    raise
                raise failure from None
            if failure is not None:
                raise failure
            for rank, report in enumerate(reports):
                if report is not None:
                    raise (
                        Stopped(report[1])
                        if report[0] == "stopped"
                        else PeerError(f"rank {rank} failed: {report[1]}")
                    )

    def raise_if_failed(self) -> None:
        """Raises what was heard of other ranks: a failure, or a stop. For long work inside `independent`."""
        watch = World._watch
        STATUS.heartbeat()
        if watch is not None and watch.news is not None:
            raise watch.news

    def can_save(self, done: int, error: Exception) -> bool:
        """Whether, after this error, all ranks are here with `done` whole steps, so that a collective save will succeed."""
        if self.size == 1:
            return True
        self._spread(error)
        alive = World._watch is not None and not isinstance(error, BrokenError)
        return alive and World._watch is not None and World._watch.meet(str(done))

    def output(self, run: Path) -> Path:
        """The file for what this rank prints."""
        return run / "logs" / f"rank-{self.rank}.txt"

    def redirect_output(self, run: Path) -> None:
        """Takes the run folder into use: what ranks other than the first print goes to RUN/logs/rank-N.txt from now on, and
        the first failure, of whichever rank, to RUN/log.txt."""
        watch = World._watch
        if watch is None:
            return
        watch.record = run / "log.txt"
        self.output(run).parent.mkdir(parents=True, exist_ok=True)
        if not self.is_first:
            watch.terminal = os.fdopen(os.dup(2), "w")
            output = os.open(self.output(run), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            for descriptor in (1, 2):
                os.dup2(output, descriptor)
            os.close(output)

    def _spread(self, error: Exception) -> None:
        watch = World._watch
        if watch is None or isinstance(error, PeerError):
            return
        if isinstance(error, Stopped):
            watch.ask_to_stop(str(error))
        else:
            _blame(watch, _understood(watch, error))

    @contextmanager
    def _exchange(self, name: str) -> Iterator[None]:
        call, start = f"world.{name} ({_place()})", time.monotonic()
        STATUS.enter_collective(call)
        try:
            yield
        except RuntimeError as error:
            waited = time.monotonic() - start
            raise BrokenError(self._missed(call, waited, str(error))) from error
        finally:
            STATUS.exit_collective(time.monotonic() - start)

    def _missed(self, call: str, waited: float, error: str) -> str:
        """What to say of an exchange that failed: the cause, if another rank has told one; else who did not come."""
        watch = World._watch
        here = f"rank {self.rank} waited {waited:.0f} s in {call}, phase {STATUS.phase}, step {STATUS.step}"
        if watch is None:
            return f"{here}: {error}"
        reason = _reason(watch, in_time=waited < watch.timeout_seconds)
        return f"{here}: {reason or f'the connection failed ({error.splitlines()[0]}). {watch.others()}'}"


def _reason(watch: Watch, *, in_time: bool) -> str:
    """Why an exchange failed, from what other ranks have told; empty if there is no telling.

    `in_time`: it did not take too long, so a connection broke; then the rank that is to blame may need a moment to say why.
    """
    watch.failing = True
    if cause := watch.cause(PATIENCE_SECONDS if in_time else 0):
        return str(cause["message"]).removeprefix("lightrft: ")
    late = {
        r: w["where"] for r, w in watch.whereabouts().items() if r != watch.rank and w["calls"] < STATUS.calls
    }
    if in_time or not late:
        return ""
    where = "; ".join(f"rank {rank} did not come, it is in {there}" for rank, there in late.items())
    return (
        f"{where}. Its stack is in RUN/logs. "
        f"If it only needs longer, raise strategy.timeout_seconds={watch.timeout_seconds:g}."
    )


def _understood(watch: Watch, error: Exception) -> Exception:
    """The error, or one that says where everybody is, if it came from a collective of the backend."""
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [str(frame.f_globals.get("__name__")) for frame, _ in frames]
    if not (isinstance(error, dist.DistError) or modules[-1].startswith("torch.distributed")):
        return error
    ours = [at for at, name in zip(frames, modules, strict=True) if name.startswith("lightrft.")]
    frame, line = [at for at in ours if "strategy" not in at[0].f_code.co_filename][-1]
    first = str(error).splitlines()[0]
    reason = _reason(watch, in_time="imed out" not in first)
    try:
        raise PeerError(
            f"rank {watch.rank} failed in a collective of the backend ({_at(frame, line)}), phase {STATUS.phase}, step {STATUS.step}: "
            f"{reason or f'{first}. {watch.others()}Stacks are in RUN/logs.'}"
        ) from error
    except PeerError as explained:
        return explained


def _meet(device: torch.device, timeout_seconds: float) -> Watch:
    """Makes the process group, and a watch that has begun."""
    timeout = timedelta(seconds=timeout_seconds)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    if (
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):  # it outlives a restart, with all that was said in it
        store = dist.PrefixStore(f"attempt-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(
        collective_backend(device),
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    watch = Watch(rank, size, dist.PrefixStore("watch", store.clone()), timeout_seconds)
    watch.start()
    return watch


def _asked_to_end(watch: Watch, number: int, frame: FrameType | None) -> None:
    """SIGTERM outside the steps of a run: ends this process, unless it is about to tell of a failure, as launchers send it then."""
    if not watch.failing:
        raise SystemExit(128 + number)


def _part(watch: Watch) -> None:
    """The end of a run as it should be: nobody leaves before all are done."""
    World.current().barrier()
    watch.leave()
    dist.destroy_process_group()


def _blame(watch: Watch, error: Exception) -> int:
    """Lets everybody know of a failure of this rank; returns the exit status."""
    message, status = told(error)
    details = "".join(traceback.format_exception(error)).rstrip()
    print(details, file=sys.stderr, flush=True) if World.current().rank else None
    is_consequence = isinstance(error, PeerError) and not isinstance(error, BrokenError)
    if not (is_consequence and watch.cause(PATIENCE_SECONDS)):
        watch.blame(message, status=status, details=details)
    return status


def _report(error: Exception) -> tuple[str, str]:
    return ("stopped", str(error)) if isinstance(error, Stopped) else ("failed", str(error))


def _place() -> str:
    """Where in the program the present exchange was asked for: the first frame outside this file."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in (__name__, "contextlib"):
        frame = frame.f_back
    return _at(frame, frame.f_lineno)


def _at(frame: FrameType, line: int) -> str:
    file = Path(frame.f_code.co_filename)
    return f"{file.parent.name}/{file.name}:{line}, in {frame.f_code.co_name}"


def check_team_size(size: int, sequence_parallel: int) -> None:
    """ValueError if `size` processes cannot be shared out in teams."""
    if size % sequence_parallel:
        raise ValueError(
            f"strategy.sequence_parallel={sequence_parallel}: {size} process{'es'[: 2 * (size > 1)]} cannot be shared out in teams of "
            f"{sequence_parallel}. Start a multiple of {sequence_parallel}, or set strategy.sequence_parallel=1."
        )


def _team(size: int, sequence_parallel: int) -> Any:
    """The row of the mesh (teams, sequence_parallel) of all ranks that this rank is in; None for teams of one."""
    check_team_size(size, sequence_parallel)
    if sequence_parallel == 1:
        return None
    team, _ = dist.new_subgroups(sequence_parallel, timeout=_time_limit())
    return team


def _time_limit() -> timedelta | None:
    """Of the run; None for processes that were not joined by it."""
    watch = World._watch
    return None if watch is None else timedelta(seconds=watch.timeout_seconds)
