"""What ranks exchange: alone, and between two processes over gloo."""

import json
import subprocess
import sys

import torch

from lightrft.parallel.world import World

TWO_RANKS = """
import json, sys
import torch, torch.distributed as dist
from lightrft.parallel.world import World
from lightrft.trainer.metrics import Layout, TokenMeans, describe
from lightrft.trainer.batching import pack
from lightrft.testing import tiny_trajectories

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
world = World.current()
given = torch.tensor([1.0 + rank, 10.0])
answers = tiny_trajectories([(2, [1 + rank, 3])])
for t in answers:
    t.reward = float(rank)
means = TokenMeans()
means.add({"x": torch.tensor([float(rank)] * (rank + 1)), "x/max": torch.tensor([5.0 - rank])[:1].expand(rank + 1)}, torch.ones(rank + 1, dtype=torch.bool))
layout = Layout()
layout.add(pack(answers))
print(json.dumps({
    "first": world.is_first,
    "sum": world.sum(given).tolist(),
    "untouched": given.tolist(),
    "max": world.max(rank * 2.5),
    "all": [world.all(True), world.all(rank == 0)],
    "gather": world.gather({"rank": rank}),
    "exchanged": [x and len(x) for x in world.all_to_all([[rank], None if rank else "big" * 100000])],
    "means": means.result(world),
    "layout": layout.result(10, world),
    "described": {k: v for k, v in describe([answers], world).items() if k in ("reward/mean", "reward/std", "length/max", "counts/responses")},
}))
world.barrier()
dist.destroy_process_group()
"""


def test_a_world_of_one_exchanges_nothing():
    world = World.current()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]
    assert world.max(3.0) == 3
    assert world.all(True)
    assert not world.all(False)
    assert world.gather("x") == ["x"]
    world.barrier()


def test_two_ranks_agree_on_sums_maxima_and_means(tmp_path):
    command = [sys.executable, "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    one, other = (json.loads(out) for out, _ in outputs)
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
