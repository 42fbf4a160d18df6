"""Who else runs this program: rank, size, and the few numbers that ranks exchange. No-op for a single process."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """All processes of a run. Every method is called by all ranks or by none."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """The initialised process group, or a world of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """True on the rank that writes what is written once."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """Largest over ranks."""
        if self.size > 1:
            tensor = torch.tensor(value, dtype=torch.float64)
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
            dist.all_gather_object(values, value)
            return values
        return [value]

    def exchange(self, outgoing: Sequence[Any]) -> list[Any]:
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
        work = [dist.irecv(incoming[r], r) for r in others if incoming[r].numel()]
        work += [dist.isend(p, r) for r in others if (p := parcels[r]) is not None]
        for one in work:
            if one is not None:  # gloo always gives one
                one.wait()
        return [
            outgoing[r] if r == self.rank else pickle.loads(t.numpy().tobytes()) if t.numel() else None
            for r, t in enumerate(incoming)
        ]

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()
