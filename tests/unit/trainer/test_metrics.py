"""From per-token numbers and answers to one number each."""

import math

import pytest
import torch

from lightrft.models.operations import Operations
from lightrft.parallel.world import World
from lightrft.testing import tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.trainer.metrics import Layout, TokenMeans, average, describe, read_rate


def judged(rewards, lengths=None, finish=None):
    """Groups of answers with these rewards: a list of lists."""
    lengths = lengths or [[2] * len(group) for group in rewards]
    found = tiny_trajectories([(3, group) for group in lengths])
    for t, reward in zip(found, [r for group in rewards for r in group], strict=True):
        t.reward, t.parts = reward, {"right": reward, "short": 1.0}
    for t, end in zip(found, finish or ["stop"] * len(found), strict=True):
        t.finish = end
    groups = {}
    for t in found:
        groups.setdefault(t.group, []).append(t)
    return list(groups.values())


def test_rewards_are_described_by_mean_and_population_deviation():
    found = describe(judged([[1, 0], [1, 1]]), World())
    assert found["reward/mean"] == 0.75
    assert found["reward/std"] == pytest.approx(math.sqrt(3) / 4)
    assert found["reward/right"] == 0.75
    assert found["reward/short"] == 1
    assert found["counts/responses"] == 4


def test_a_group_whose_rewards_are_equal_has_no_signal():
    assert describe(judged([[1, 0], [1, 1], [0, 0], [0.1, 0.1]]), World())["reward/zero_std_fraction"] == 0.75


def test_groups_of_one_response_have_no_share_of_equal_ones():
    assert "reward/zero_std_fraction" not in describe(judged([[1], [0], [0]]), World())
    assert describe(judged([[1, 0], [1], [0]]), World())["reward/zero_std_fraction"] == pytest.approx(2 / 3)


def test_lengths_and_cut_answers_are_described():
    found = describe(judged([[1, 0, 0]], lengths=[[2, 4, 0]], finish=["stop", "length", "stop"]), World())
    assert found["length/mean"] == 2
    assert found["length/max"] == 4
    assert found["length/truncated_fraction"] == pytest.approx(1 / 3)


def test_nothing_is_described_without_dividing_by_zero():
    found = describe([], World())
    assert found["reward/mean"] == found["length/max"] == found["counts/responses"] == 0


def test_token_means_weigh_tokens_not_batches():
    means = TokenMeans()
    means.add(
        {"x": torch.tensor([1.0, 2.0, 3.0]), "x/max": torch.tensor([1.0, 9.0, 3.0])},
        torch.tensor([True, False, True]),
    )
    means.add({"x": torch.tensor([10.0]), "x/max": torch.tensor([4.0])}, torch.tensor([True]))
    assert means.result(World()) == {"x": pytest.approx(14 / 3), "x/max": 4}


def test_a_batch_without_learned_tokens_adds_nothing():
    means = TokenMeans()
    means.add({"x": torch.tensor([5.0]), "x/max": torch.tensor([5.0])}, torch.tensor([False]))
    assert means.result(World()) == {}


def test_many_small_numbers_are_summed_without_loss():
    means = TokenMeans()
    for _ in range(1000):
        means.add({"x": torch.full((1000,), 0.1)}, torch.ones(1000, dtype=torch.bool))
    assert means.result(World())["x"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_updates_are_averaged_maxima_kept_counts_added_and_the_last_rate_taken():
    rows = [
        {"loss": 1.0, "mismatch/max": 0.5, "learning_rate": 0.1, "counts/skipped_updates": 1.0},
        {"loss": 3.0, "mismatch/max": 0.2, "learning_rate": 0.2},
    ]
    assert average(rows) == {
        "loss": 2.0,
        "mismatch/max": 0.5,
        "learning_rate": 0.2,
        "counts/skipped_updates": 1.0,
    }


def test_the_average_of_no_updates_is_empty():
    assert average([]) == {}


def test_a_bad_update_shows_in_the_average():
    assert math.isnan(average([{"loss": 1.0}, {"loss": math.nan}])["loss"])


def test_a_layout_is_compared_with_its_budget_and_with_a_rectangle():
    """A prompt of 4 with answers of 3 and 1, a prompt of 2 with one of 6; the prompt of two answers is read once."""
    layout = Layout()
    one, other, third = tiny_trajectories([(4, [3, 1]), (2, [6])])
    layout.add(pack([one, other]))
    layout.add(pack([third]))
    found = layout.result(tokens_per_micro_batch=16, world=World())
    assert found == {
        "counts/tokens_read": 16.0,
        "update/token_budget_used": (8 + 8) / 32,
        "update/padding_avoided": pytest.approx(1 - 20 / 30),
    }


def test_the_operations_of_an_update_are_counted_by_tokens_and_what_they_attend_to():
    """A prompt of 4 with answers of 3 and 1: the four see 4 * 4 / 2 pairs, and the answers 3 * (4 + 3 / 2) and 1 * (4 + 1 / 2)."""
    layout = Layout()
    layout.add(pack(tiny_trajectories([(4, [3, 1])])))
    model = Operations(products=1e12, head=int(1e11), attention=int(1e10), learned=0.5)
    forward, attended = 2 * (8 * 1.0 + 4 * 0.1), 4 * 0.01 * (8 + 3 * 5.5 + 4.5)
    found = layout.result(tokens_per_micro_batch=16, world=World(), model=model)
    assert found["counts/teraflop"] == pytest.approx(2.5 * forward + 3 * attended)


def test_model_flops_utilization_is_a_share_of_the_rate_of_one_device_and_counts_the_critic():
    step = {"counts/teraflop": 30.0, "critic/counts/teraflop": 10.0, "seconds/train": 2.0}
    assert read_rate(step, World(0, 4), 10.0) == {"train/teraflops_per_device": 5.0, "train/mfu": 0.5}
    assert read_rate(step, World(0, 4)) == {"train/teraflops_per_device": 5.0}


def test_the_rate_of_reading_is_that_of_one_rank():
    counts = {"counts/tokens_read": 300.0, "seconds/train": 2.0}
    assert read_rate(counts, World(0, 3)) == {"train/tokens_per_second_per_device": 50.0}
    assert read_rate({"seconds/train": 2.0}, World()) == {}
