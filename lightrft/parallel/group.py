"""The ranks of a run and the few numbers that they exchange. No-op for a single process."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightrft.parallel.explain import collective
from lightrft.parallel.status import STATUS


@dataclass(frozen=True, slots=True)
class Group:
    """All processes of a run. Every method is called by all ranks or by none."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """True on the rank that writes what is written once."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks."""
        if self.size > 1:
            values = values.clone()
            with collective("sum", self.rank):
                dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """Largest over ranks."""
        if self.size > 1:
            tensor = torch.tensor(value, dtype=torch.float64)
            with collective("max", self.rank):
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
            with collective("gather", self.rank):
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
        with collective("all_to_all", self.rank):
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
        if (limit := time_limit()) is not None:
            dist.distributed_c10d._set_pg_timeout(limit, group)

    def new_group(self) -> Any:
        """All ranks once more, over gloo, for a thread that exchanges while the program goes on; None for a world of one."""
        return dist.new_group(backend="gloo", timeout=time_limit()) if self.size > 1 else None

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            with collective("barrier", self.rank):
                dist.barrier()


def time_limit() -> timedelta | None:
    """The longest that a collective may take; None for processes that were not joined by a run."""
    watch = STATUS.watch
    return None if watch is None else timedelta(seconds=watch.timeout_seconds)
