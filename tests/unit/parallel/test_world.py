"""What ranks exchange: alone, and between two processes over gloo."""

import torch

from lightrft.parallel.world import World
from lightrft.testing import tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.trainer.metrics import Layout, TokenMeans, describe
from tests.distributed.launch import together


def told():
    """What one of two ranks hears in each exchange."""
    world = World.current()
    rank = world.rank
    given = torch.tensor([1.0 + rank, 10.0])
    answers = tiny_trajectories([(2, [1 + rank, 3])])
    for t in answers:
        t.reward = float(rank)
    means = TokenMeans()
    most = torch.tensor([5.0 - rank]).expand(rank + 1)
    means.add(
        {"x": torch.tensor([float(rank)] * (rank + 1)), "x/max": most}, torch.ones(rank + 1, dtype=torch.bool)
    )
    layout = Layout()
    layout.add(pack(answers))
    described = describe([answers], world)
    return {
        "first": world.is_first,
        "sum": world.sum(given).tolist(),
        "untouched": given.tolist(),
        "max": world.max(rank * 2.5),
        "all": [world.all(True), world.all(rank == 0)],
        "gather": world.gather({"rank": rank}),
        "exchanged": [x and len(x) for x in world.all_to_all([[rank], None if rank else "big" * 100000])],
        "means": means.result(world),
        "layout": layout.result(10, world),
        "described": {
            k: described[k] for k in ("reward/mean", "reward/std", "length/max", "counts/responses")
        },
    }


def test_a_world_of_one_exchanges_nothing():
    world = World.current()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert world.max(3.0) == 3
    assert world.all(True)
    assert not world.all(False)
    assert world.gather("x") == ["x"]
    world.barrier()


def test_two_ranks_agree_on_sums_maxima_and_means():
    one, other = together(told, 2)
    assert (one.pop("first"), other.pop("first")) == (True, False)
    assert (one.pop("untouched"), other.pop("untouched")) == ([1, 10], [2, 10])
    exchanged = one.pop("exchanged"), other.pop("exchanged")
    assert exchanged == ([1, 1], [300000, None])
    assert one == other
    assert one["sum"] == [3, 20]
    assert one["max"] == 2.5
    assert one["all"] == [True, False]
    assert one["gather"] == [{"rank": 0}, {"rank": 1}]
    assert one["means"] == {"x": 2 / 3, "x/max": 5}
    # A prompt of 2 with answers of 1 and 3 on one rank (6 read), with 2 and 3 on the other (7 read); 17 tokens of a rectangle of 4 x 5.
    assert one["layout"] == {
        "counts/tokens_read": 13,
        "update/token_budget_used": 13 / 20,
        "update/padding_avoided": (20 - 17) / 20,
        "update/rank_balance": 6.5 / 7,
    }
    assert one["described"] == {"reward/mean": 0.5, "reward/std": 0.5, "length/max": 3, "counts/responses": 4}
