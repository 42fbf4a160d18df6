"""From trajectories to packed batches and back: plan who goes with whom, lay out, fill in.

A prompt is laid down once per batch and followed by all its responses there; see `Inputs`.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightrft.config import UpdateConfig
from lightrft.models.kinds import Layout
from lightrft.models.words import COLUMNS, token_layout
from lightrft.parallel.world import World
from lightrft.types import Batch, Prompt, Trajectory
from lightrft.utils.device import sent
from lightrft.utils.seeding import derive_seed

Prepare = Callable[[Sequence[Trajectory], Batch], None]
"""Responses, the batch of them -> fills in what the batch lacks."""


@dataclass(frozen=True)
class Batching:
    """How a rank packs its responses into micro-batches, in step with all others."""

    config: UpdateConfig
    world: World
    device: torch.device
    """Where a model reads them."""
    blank: Trajectory | None = None
    """Computed by ranks that have fewer batches than others, so that all call for the same weights equally often; nothing
    is learned from it, and one process needs none."""
    whole_groups: bool = False
    """Never divide a group, for losses that compare its responses."""
    outputs: Sequence[str] = ()
    """Names of Trajectory.parts that batches have as columns of `Batch.grades`."""
    layout: Layout = token_layout
    """What the model reads for some responses, as its kind has it (models/kinds.py)."""
    entrywise: bool = False
    """Whether the loss of an entry looks at no other, so that a response may be divided (trainer/division.py)."""

    def updates(
        self, trajectories: Sequence[Trajectory], *, seed: int, first: int = 0
    ) -> Iterator[tuple[int, list[Trajectory]]]:
        """Number and responses of each optimizer update: `config.epochs` passes of `config.num_minibatches` updates each.

        Which answers meet in which update depends on `seed` alone. `first` skips the updates before that number. Called by
        all ranks, which all get equally many; a rank may have no responses in one.
        """
        for epoch in range(self.config.epochs):
            parts = minibatches(
                trajectories,
                self.config.num_minibatches,
                seed=derive_seed(seed, epoch),
                world=self.world,
                whole_groups=self.whole_groups,
            )
            for place, part in enumerate(parts):
                index = epoch * len(parts) + place
                if index >= first:
                    yield index, part

    def rounds(
        self, trajectories: Sequence[Trajectory], prepare: Prepare = lambda _part, _batch: None
    ) -> Iterator[tuple[list[Trajectory], Batch, bool]]:
        """These responses in micro-batches of `config.tokens_per_micro_batch` tokens at most; called by all ranks, see `rounds`."""
        share_prompts = self.config.share_prompts
        planned = plan(
            trajectories,
            self.config.tokens_per_micro_batch,
            share_prompts=share_prompts,
            whole_groups=self.whole_groups,
        )
        return rounds(
            planned,
            self.blank,
            self.world,
            share_prompts=share_prompts,
            device=self.device,
            outputs=self.outputs,
            prepare=prepare,
            layout=self.layout,
        )


def pack(
    trajectories: Sequence[Trajectory],
    *,
    inputs: bool = True,
    share_prompts: bool = True,
    outputs: Sequence[str] = (),
    device: torch.device | str = "cpu",
    layout: Layout = token_layout,
) -> Batch:
    """One batch of all these responses, in this order; `inputs=False` leaves out what only a model reads.

    `outputs`: names of Trajectory.parts for the columns of `Batch.grades`; without them there are none. `weights` are zero until
    the trainer has set them. Siblings must be adjacent to share their prompt.
    """
    lengths = torch.tensor([len(t) for t in trajectories], dtype=torch.int64)
    batch = Batch(
        segments=torch.repeat_interleave(torch.arange(len(trajectories)), lengths),
        groups=torch.tensor([t.group for t in trajectories], dtype=torch.int64),
        mask=torch.tensor([x for t in trajectories for x in t.mask], dtype=torch.bool),
        scores=torch.tensor([t.reward for t in trajectories], dtype=torch.float32),
        weights=torch.zeros(int(lengths.sum())),
        behavior=torch.tensor([x for t in trajectories for x in t.behavior], dtype=torch.float32),
        baselines=torch.tensor([t.baseline for t in trajectories], dtype=torch.float32),
    )
    if outputs:
        rows = [[t.parts.get(name, math.nan) for name in outputs] for t in trajectories]
        batch.grades = torch.tensor(rows, dtype=torch.float32).view(-1, len(outputs))
    for name in COLUMNS:
        if trajectories and all(name in t.columns for t in trajectories):
            setattr(batch, name, torch.cat([t.columns[name] for t in trajectories]))
    if inputs:
        batch.inputs = layout(trajectories, share_prompts)
    return to_device(batch, device)


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """Batch with every tensor on `device`, without waiting for it."""
    device = torch.device(device)
    moved: dict[str, Any] = {
        name: sent(value, device) if isinstance(value := getattr(batch, name), Tensor) else value
        for name in Batch.__dataclass_fields__
    }
    if batch.inputs is not None:
        read: Any = batch.inputs
        parts = {f.name: getattr(read, f.name) for f in fields(read)}
        tensors = {name: sent(value, device) for name, value in parts.items() if isinstance(value, Tensor)}
        media = {name: sent(value, device) for name, value in read.media.items()}
        moved["inputs"] = replace(read, **tensors, media=media)
    return Batch(**moved)


def team_batches(batch: Batch, world: World, device: torch.device | str) -> Iterator[tuple[Batch, bool]]:
    """The batch of each rank of this rank's team in turn, on `device`, and whether it is this rank's own.

    All ranks of a team compute each of these together (models/sequence.py); what it is worth belongs to the one whose
    own it is: only that rank counts it, and fills in its responses. Without teams this rank's batch is the only one.
    """
    for shared, is_own in world.broadcast_in_turn(batch):
        assert shared.inputs is not None
        together = replace(shared, inputs=replace(shared.inputs, team=world.team))
        yield to_device(together, device), is_own


def rounds(
    planned: Sequence[list[Trajectory]],
    blank: Trajectory | None,
    world: World,
    *,
    share_prompts: bool,
    device: torch.device | str,
    outputs: Sequence[str] = (),
    prepare: Prepare = lambda _part, _batch: None,
    layout: Layout = token_layout,
) -> Iterator[tuple[list[Trajectory], Batch, bool]]:
    """All that this rank computes of what every rank has planned, so that all compute equally often; called by all ranks.

    Gives the responses, a batch, and whether the batch is of these responses and counts: not if it is blank, or of another
    rank of the team. `prepare` completes a batch of this rank, of these responses, before it goes to its team.
    """
    for answers in pad_count(planned, blank, world):
        packed = pack(answers, share_prompts=share_prompts, outputs=outputs, layout=layout)
        prepare(answers, packed)
        for batch, is_own in team_batches(packed, world, device):
            yield answers, batch, is_own and answers[0] is not blank


def unpack(values: Tensor, trajectories: Sequence[Trajectory], name: str) -> None:
    """Gives each trajectory its part of a (T,) column, as float32 on the CPU."""
    for t, part in zip(trajectories, split(values, trajectories), strict=True):
        t.columns[name] = part


def split(values: Tensor, trajectories: Sequence[Trajectory]) -> Sequence[Tensor]:
    """The part of each trajectory, (L,), of a (T,) column, as float32 on the CPU."""
    return torch.split(values.detach().to("cpu", torch.float32), [len(t) for t in trajectories])


def plan(
    trajectories: Sequence[Trajectory],
    tokens_per_micro_batch: int,
    *,
    share_prompts: bool = True,
    whole_groups: bool = False,
) -> list[list[Trajectory]]:
    """Responses shared out over as few batches as first-fit finds, filled evenly where that goes; each reads at most
    `tokens_per_micro_batch` tokens.

    A group stays together where it fits, so that its prompt is read once, and with `whole_groups` always; a single response, or
    such a group, that is longer than the budget gets a batch of its own. Every response with at least one token is in exactly one
    batch.
    """
    pieces: list[tuple[int, list[Trajectory]]] = []
    for siblings in by_group(trajectories):
        piece: list[Trajectory] = []
        size = 0
        for t in siblings:
            if not len(t):
                continue
            shares = share_prompts and piece and piece[-1].prompt is t.prompt
            extra = reads(t) + (0 if shares else reads(t.prompt))
            if piece and size + extra > tokens_per_micro_batch and not whole_groups:
                pieces.append((size, piece))
                piece, size = [], 0
                extra = reads(t) + reads(t.prompt)
            piece.append(t)
            size += extra
        if piece:
            pieces.append((size, piece))
    pieces.sort(key=lambda p: -p[0])  # stable: the order among equals is the order given
    sizes = [size for size, _ in pieces]
    places = first_fit(sizes, tokens_per_micro_batch)
    even = least_loaded(sizes, len(set(places)))
    loads, alone = _loads(sizes, even), Counter(even)
    if all(load <= tokens_per_micro_batch or alone[place] == 1 for place, load in loads.items()):
        places = even
    batches: list[list[Trajectory]] = [[] for _ in set(places)]
    for (_, piece), place in zip(pieces, places, strict=True):
        batches[place] += piece
    return batches


def reads(what: Trajectory | Prompt) -> int:
    """Positions the model reads for a response, or for a prompt once in a batch."""
    if isinstance(what, Trajectory):
        return len(what) * max(1, what.prompt.width)
    return 0 if what.width else len(what.token_ids)


def pad_count(
    batches: Sequence[list[Trajectory]], blank: Trajectory | None, world: World
) -> list[list[Trajectory]]:
    """These batches, and as many of `blank` as it takes for every rank to have the same number; called by all ranks."""
    lacking = int(world.max(len(batches))) - len(batches)
    assert blank is not None or not lacking
    return [*batches, *([blank] for _ in range(lacking) if blank is not None)]


def batch_tokens(answers: Sequence[Trajectory], *, share_prompts: bool = True) -> int:
    """Tokens the model reads for these responses in one batch."""
    each = {(t.group, id(t.prompt)): t.prompt for t in answers}
    prompts = each.values() if share_prompts else [t.prompt for t in answers]
    return sum(map(reads, answers)) + sum(map(reads, prompts))


def first_fit(sizes: Sequence[int], capacity: int) -> list[int]:
    """The bin of each item: the first that has room, or a new one."""
    used: list[int] = []
    places = []
    for size in sizes:
        place = next((i for i, load in enumerate(used) if load + size <= capacity), len(used))
        if place == len(used):
            used.append(0)
        used[place] += size
        places.append(place)
    return places


def least_loaded(sizes: Sequence[int], count: int) -> list[int]:
    """The bin of each item: the one of `count` that has least so far. Even, if the items come largest first (Graham 1969)."""
    loads = [(0, place) for place in range(count)]
    places = []
    for size in sizes:
        load, place = heapq.heappop(loads)
        heapq.heappush(loads, (load + size, place))
        places.append(place)
    return places


def _loads(sizes: Sequence[int], places: Sequence[int]) -> dict[int, int]:
    loads: dict[int, int] = {}
    for size, place in zip(sizes, places, strict=True):
        loads[place] = loads.get(place, 0) + size
    return loads


def minibatches(
    trajectories: Sequence[Trajectory],
    count: int,
    *,
    seed: int,
    world: World | None = None,
    whole_groups: bool = False,
) -> list[list[Trajectory]]:
    """This rank's responses in the `count` parts into which those of all ranks are divided; called by all ranks.

    Parts are of equal size over all ranks (within one), of whole groups in random order, split only where they must be; with
    `whole_groups` none is split, parts are as equal as that allows, and there may be fewer.
    So which answers meet does not depend on who has them, and a rank may have none in a part. One part keeps the order.
    """
    world = World() if world is None else world
    if count == 1:
        return [list(trajectories)] if world.max(len(trajectories)) else []
    groups = {group[0].group: group for group in by_group(trajectories)}
    sizes = {
        name: size
        for rank in world.gather({n: len(g) for n, g in groups.items()})
        for name, size in rank.items()
    }
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    ends = list(itertools.accumulate(sizes[name] for name in order))
    total = sum(sizes.values())
    cuts = [total * i // count for i in range(count + 1)]
    parts: list[list[Trajectory]] = [[] for _ in range(count)]
    used: set[int] = set()
    for name, end in zip(order, ends, strict=True):
        middle = end - (sizes[name] + 1) // 2
        for place in range(end - sizes[name], end):
            part = bisect.bisect_right(cuts, middle if whole_groups else place) - 1
            used.add(part)
            if name in groups:
                parts[part].append(groups[name][place - end + sizes[name]])
    return [parts[part] for part in sorted(used)]


def rows_of(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """All that is read of these responses: each, followed by its forks."""
    return [row for t in trajectories for row in (t, *t.forks)]


def owners_of(trajectories: Sequence[Trajectory]) -> Tensor:
    """(S,) int64: to which of the responses each of their `rows_of` belongs."""
    return torch.tensor(
        [place for place, t in enumerate(trajectories) for _ in rows_of([t])], dtype=torch.int64
    )


def by_group(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """Responses of one group together, groups in the order of their first responses."""
    groups: dict[int, list[Trajectory]] = {}
    for t in trajectories:
        groups.setdefault(t.group, []).append(t)
    return list(groups.values())
