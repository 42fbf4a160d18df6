"""How a process comes into a run and leaves it: rendezvous, process group, where its output goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from lightrft.parallel.explain import understood
from lightrft.parallel.faults import blame
from lightrft.parallel.group import Group
from lightrft.parallel.status import STATUS
from lightrft.parallel.watch import Watch
from lightrft.utils.device import collective_backend, use
from lightrft.utils.interrupt import Stopped
from lightrft.utils.output import guarded


@contextmanager
def joined(device: torch.device, timeout_seconds: float) -> Iterator[Group]:
    """Inside, this process is one of $WORLD_SIZE that were started together, see World.joined."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and "MASTER_ADDR" not in os.environ:
        yield Group()
        return
    use(device)
    watch = STATUS.watch = _meet(device, timeout_seconds)
    before = signal.signal(signal.SIGTERM, partial(_asked_to_end, watch))
    try:
        yield Group(watch.rank, watch.size)
        _leave(watch)
    except Stopped:
        _leave(watch)
        raise
    except Exception as error:
        status = blame(watch, understood(watch, error))
        if not watch.stop():
            os._exit(status)
        raise SystemExit(status) from error
    finally:
        watch.stop()
        STATUS.watch = None
        signal.signal(signal.SIGTERM, before)


def redirect_output(watch: Watch, log: Path, logs: Path) -> None:
    """Failures go to the file `log` from now on, and what ranks other than the first print to files in `logs`."""
    watch.record = log
    file = watch.output = output_file(logs, watch.rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    if watch.rank:
        watch.terminal = guarded(os.fdopen(os.dup(2), "w"))
        output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.close(output)


def output_file(logs: Path, rank: int) -> Path:
    """The file in the folder `logs` for what a rank prints."""
    return logs / f"rank-{rank}.txt"


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


def _asked_to_end(watch: Watch, number: int, _frame: FrameType | None) -> None:
    """SIGTERM outside the steps of a run: ends this process, unless it is about to tell of a failure, as launchers send it then."""
    if not watch.failing:
        raise SystemExit(128 + number)


def _leave(watch: Watch) -> None:
    """The end of a run as it should be: nobody leaves before all are done."""
    Group(watch.rank, watch.size).barrier()
    watch.leave()
    dist.destroy_process_group()
