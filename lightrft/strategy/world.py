"""Who else runs this program: rank, size, and the few numbers that ranks exchange. No-op for a single process."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """All processes of a run. Every method is called by all ranks or by none."""

    rank: int = 0
    size: int = 1
    team: Any = None
    """The process group of the ranks that compute micro-batches together with this one (strategy.sequence_parallel); None: none."""

    @classmethod
    def current(cls, sequence_parallel: int = 1) -> World:
        """The initialised process group, or a world of one; neighbouring ranks make teams of `sequence_parallel`.

        With teams it is called by all ranks. ValueError if the ranks cannot be shared out.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(team=_team(1, sequence_parallel))
        rank, size = dist.get_rank(), dist.get_world_size()
        return cls(rank, size, _team(size, sequence_parallel))

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

    @property
    def team_size(self) -> int:
        """Ranks that compute a micro-batch together."""
        return 1 if self.team is None else int(self.team.size())

    def team_sum(self, value: float) -> float:
        """Sum over the ranks of this rank's team."""
        if self.team is None:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, group=self.team)
        return float(tensor)

    def turns(self, value: T) -> Iterator[tuple[T, bool]]:
        """The value of each rank of this rank's team in turn, and whether it is its own. Anything that pickles."""
        if self.team is None:
            yield value, True
            return
        for member in range(self.team_size):
            is_own = member == self.team.rank()
            parcel = [value if is_own else None]
            dist.broadcast_object_list(parcel, group=self.team, group_src=member)
            yield (value if is_own else parcel[0]), is_own  # type: ignore[misc]  # it came from a rank that has one

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()


def _team(size: int, sequence_parallel: int) -> Any:
    """The row of the mesh (data, sequence) that this rank is in; None for teams of one."""
    if size % sequence_parallel:
        raise ValueError(
            f"strategy.sequence_parallel={sequence_parallel}: {size} process{'es'[: 2 * (size > 1)]} cannot be shared out in teams of "
            f"{sequence_parallel}. Start a multiple of {sequence_parallel}, or set strategy.sequence_parallel=1."
        )
    if sequence_parallel == 1:
        return None
    # The kind of device is only a label here: the groups of a mesh take the backends of the default group.
    shape = (size // sequence_parallel, sequence_parallel)
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "sequence")).get_group("sequence")
