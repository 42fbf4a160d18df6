"""How a process comes into a run and leaves it: rendezvous, process group, where its output goes."""

from __future__ import annotations

import os
import signal
import time
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
from lightrft.parallel.watch import Watch, for_watches, of_attempt
from lightrft.utils.device import collective_backend, use
from lightrft.utils.failures import first_line
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
    """Makes the process group, and a watch that has begun. RuntimeError, with what to do, if the processes do not meet."""
    timeout = timedelta(seconds=timeout_seconds)
    start = time.monotonic()
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = of_attempt(store, int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
        group = dist.PrefixStore("group", store)
        dist.init_process_group(
            collective_backend(device), store=group, rank=rank, world_size=size, timeout=timeout
        )
        watch = Watch(rank, size, for_watches(store.clone()), timeout_seconds)
        watch.start()
    except (RuntimeError, ValueError) as error:
        raise RuntimeError(_not_met(error, time.monotonic() - start, timeout_seconds)) from error
    return watch


def _not_met(error: Exception, waited: float, timeout_seconds: float) -> str:
    """Why the processes of a run did not come together, and what to do."""
    named = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    missing = [name for name, value in named.items() if not value]
    if missing:
        return (
            f"this process is to be one of several, but {' and '.join(missing)} is not set. Start all with torchrun or a scheduler, "
            "or with --gpus N or --processes N on one machine."
        )
    place = f"MASTER_ADDR={named['MASTER_ADDR']}, MASTER_PORT={named['MASTER_PORT']}"
    cause = first_line(error).split("Exception raised from")[0].strip().rstrip(".")
    if "EADDRINUSE" in str(error) or "in use" in cause:
        return (
            f"rank {named['RANK']} cannot listen at MASTER_PORT={named['MASTER_PORT']}: another program has it, perhaps a run that is "
            "still going. Set MASTER_PORT to a free port, the same for all processes."
        )
    return (
        f"rank {named['RANK']} of {named['WORLD_SIZE']} waited {waited:.0f} s in vain for the others ({place}): {cause}. Start all of them "
        "with these numbers, on machines that reach that address, or wait longer for the last with a larger "
        f"strategy.timeout_seconds={timeout_seconds:g}."
    )


def _asked_to_end(watch: Watch, number: int, _frame: FrameType | None) -> None:
    """SIGTERM outside the steps of a run: ends this process, unless it is about to tell of a failure, as launchers send it then."""
    if not watch.failing:
        raise SystemExit(128 + number)


def _leave(watch: Watch) -> None:
    """The end of a run as it should be: nobody leaves before all are done."""
    Group(watch.rank, watch.size).barrier()
    watch.leave()
    dist.destroy_process_group()
