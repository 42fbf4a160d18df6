"""Teams of neighbouring ranks that compute each micro-batch together (strategy.sequence_parallel).

A team is its process group, or None for a rank that computes alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lightrft.parallel.explain import collective
from lightrft.parallel.group import time_limit

T = TypeVar("T")


def check_team_size(size: int, sequence_parallel: int) -> None:
    """ValueError if `size` processes cannot be shared out in teams."""
    if size % sequence_parallel:
        raise ValueError(
            f"strategy.sequence_parallel={sequence_parallel}: {size} process{'es'[: 2 * (size > 1)]} cannot be shared out in teams of "
            f"{sequence_parallel}. Start a multiple of {sequence_parallel}, or set strategy.sequence_parallel=1."
        )


def make_team(size: int, sequence_parallel: int) -> Any:
    """The row of the mesh (teams, sequence_parallel) of all ranks that this rank is in; None for teams of one."""
    check_team_size(size, sequence_parallel)
    if sequence_parallel == 1:
        return None
    team, _ = dist.new_subgroups(sequence_parallel, timeout=time_limit())
    return team


def team_size(team: Any) -> int:
    """Number of ranks in a team."""
    return 1 if team is None else int(team.size())


def team_sum(team: Any, value: float, rank: int) -> float:
    """Sum of the values of a team's ranks. `rank`: this one among all, for error texts."""
    if team is None:
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    with collective("team_sum", rank):
        dist.all_reduce(tensor, group=team)
    return float(tensor)


def broadcast_in_turn(team: Any, value: T, rank: int) -> Iterator[tuple[T, bool]]:
    """The value of each rank of a team in turn, and whether it is this rank's own. Anything that pickles."""
    if team is None:
        yield value, True
        return
    for member in range(team_size(team)):
        is_own = member == team.rank()
        parcel = [value if is_own else None]
        with collective("broadcast_in_turn", rank):
            dist.broadcast_object_list(parcel, group=team, group_src=member)
        yield (value if is_own else parcel[0]), is_own  # type: ignore[misc]  # it came from a rank that has one
