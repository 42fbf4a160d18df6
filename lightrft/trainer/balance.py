"""Responses move between ranks until each has about as many tokens to learn from: the slowest rank sets the pace of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightrft.parallel.world import World
from lightrft.runs.storage import restored, stored
from lightrft.trainer.batching import batch_tokens, by_group, least_loaded
from lightrft.types import Trajectory


def balanced(
    answers: Sequence[Trajectory],
    world: World,
    work: Callable[[Sequence[Trajectory]], int] = batch_tokens,
) -> list[Trajectory]:
    """This rank's share of the responses of all ranks; groups stay whole, and no gradient depends on who has what.

    `work`: tokens that are read of a group; one of which none is stays where it is. Called by all ranks. What the update reads of a response
    moves with it; messages and target may come as text.
    """
    if world.size == 1:
        return list(answers)
    groups = by_group(answers)
    sizes = [work(group) for group in groups]
    shared = iter(assign(world.gather([size for size in sizes if size]))[world.rank])
    targets = [next(shared) if size else world.rank for size in sizes]
    outgoing = [
        [t for group, target in zip(groups, targets, strict=True) if target == rank for t in group]
        for rank in range(world.size)
    ]
    parcels = [stored(part) if part and rank != world.rank else None for rank, part in enumerate(outgoing)]
    arrived = [restored(parcel) for parcel in world.all_to_all(parcels) if parcel is not None]
    return outgoing[world.rank] + [t for part in arrived for t in part]


def assign(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    """The rank that each group goes to, given the sizes of the groups on each rank, the largest first to who has least.

    Shares are then named after the rank that already holds most of them, so that little moves.
    """
    everything = [(size, rank, place) for rank, here in enumerate(sizes) for place, size in enumerate(here)]
    everything.sort(key=lambda one: -one[0])
    shares = least_loaded([size for size, _, _ in everything], len(sizes))
    held = [[0] * len(sizes) for _ in sizes]  # held[share][rank]: tokens of the share that the rank has
    for (size, rank, _), share in zip(everything, shares, strict=True):
        held[share][rank] += size
    owner: dict[int, int] = {}
    pairs = sorted((-held[s][r], s, r) for s in range(len(sizes)) for r in range(len(sizes)))
    for _, share, rank in pairs:
        if share not in owner and rank not in owner.values():
            owner[share] = rank
    targets = [[0] * len(here) for here in sizes]
    for (_, rank, place), share in zip(everything, shares, strict=True):
        targets[rank][place] = owner[share]
    return targets
