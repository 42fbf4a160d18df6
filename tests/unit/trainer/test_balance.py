"""Moving answers between ranks so that each has about as much to learn from."""

import random

import pytest
import torch

from lightrft.parallel.world import World
from lightrft.testing import tiny_trajectories
from lightrft.trainer.balance import assign, balanced
from tests.distributed.launch import together


def shared_out():
    """What this rank of three had, and what it has after sharing out."""
    world = World.current()
    shape = [[(2, [60, 60]), (2, [50]), (2, [1])], [(2, [4, 4])], []][world.rank]
    answers = tiny_trajectories(shape, seed=world.rank)
    for t in answers:
        t.group += 10 * world.rank
        t.columns["old"] = torch.arange(len(t)) + 0.5
    found = balanced(answers, world)
    return {
        "had": [(t.group, t.token_ids) for t in answers],
        "has": [(t.group, t.token_ids) for t in found],
        "shared": all(a.prompt is b.prompt for a in found for b in found if a.group == b.group),
        "columns": all(t.columns["old"].tolist() == [i + 0.5 for i in range(len(t))] for t in found),
    }


def idle_ones():
    """The groups of this rank of two after sharing out by the work in them: those numbered 0 have none."""
    world = World.current()
    answers = tiny_trajectories([(2, [40]), (2, [30]), (2, [20])] if world.rank == 0 else [(2, [10])])
    for number, t in enumerate(answers):
        t.group = 10 * world.rank + number
    found = balanced(answers, world, lambda group: 0 if group[0].group in (0, 10) else len(group[0]))
    return [t.group for t in found]


def test_what_takes_no_work_stays_where_it_is():
    assert together(idle_ones, 2) == [[0, 1], [10, 2]]


def test_alone_a_rank_keeps_what_it_has():
    answers = tiny_trajectories([(2, [3, 1]), (1, [5])])
    assert all(a is b for a, b in zip(balanced(answers, World()), answers, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_as_even_as_the_largest_group_allows(seed):
    """Graham 1969: no rank exceeds the mean by more than one group."""
    draw = random.Random(seed)
    sizes = [[draw.randrange(1, 100) for _ in range(draw.randrange(0, 9))] for _ in range(4)]
    loads = [0] * 4
    for here, targets in zip(sizes, assign(sizes), strict=True):
        assert len(here) == len(targets)
        for size, target in zip(here, targets, strict=True):
            loads[target] += size
    largest = max((size for here in sizes for size in here), default=0)
    assert max(loads) <= sum(loads) / 4 + largest


def test_what_is_even_does_not_move():
    assert assign([[5, 4], [4, 5], [9]]) == [[0, 0], [1, 1], [2]]


def test_three_ranks_share_out_their_answers_whole_groups_and_none_lost():
    found = together(shared_out, 3)
    assert all(rank["shared"] and rank["columns"] for rank in found)
    had, has = (sorted(t for rank in found for t in rank[name]) for name in ("had", "has"))
    assert has == had
    owners = [{group for group, _ in rank["has"]} for rank in found]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 4
    assert sorted(sum(len(tokens) for _, tokens in rank["has"]) for rank in found) == [9, 50, 120]
