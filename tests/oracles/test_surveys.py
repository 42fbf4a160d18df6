"""Losses that look at all tokens of an update first, against sorted lists written from their papers."""

import math
import statistics

import pytest
import torch

from lightrft.algorithms.losses import LOSSES
from lightrft.algorithms.ratios import log_ratio
from lightrft.algorithms.surveys import largest
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch
from tests.published import published

ALGO = AlgorithmConfig(clip=[0.2, 0.3])


def same(x):
    return x


def drawn(seed, tokens=60):
    """Three responses, a tenth of whose tokens the policy did not choose; log-probs under the policy as it is."""
    draw = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(tokens, generator=draw, dtype=torch.float64)
    batch = make_batch(
        [20, 25, 15],
        mask=torch.rand(tokens, generator=draw) < 0.9,
        old=old,
        behavior=old,
        advantages=torch.randn(tokens, generator=draw, dtype=torch.float64),
    )
    new = old + 0.4 * torch.randn(tokens, generator=draw, dtype=torch.float64)
    return new, batch


def covariance(new, batch):
    chosen = [i for i, kept in enumerate(batch.mask.tolist()) if kept]
    values, advantages = new.tolist(), batch.advantages.tolist()
    mean = statistics.fmean(values[i] for i in chosen)
    gain = statistics.fmean(advantages[i] for i in chosen)
    return {i: (values[i] - mean) * (advantages[i] - gain) for i in chosen}


def clipped(new, batch, i):
    """The loss of token i, and whether the clip stops it."""
    ratio, advantage = math.exp(float(new[i] - batch.old[i])), float(batch.advantages[i])
    bounded = min(max(ratio, 0.8), 1.3)
    return -min(ratio * advantage, bounded * advantage), (ratio - bounded) * advantage > 0


def ours(name, new, batch, **options):
    batch.marks = LOSSES[name].survey(new, batch, ALGO, same, **options)
    return LOSSES[name](new, batch, ALGO, **options)


@pytest.mark.parametrize("seed", range(5))
def test_kl_cov_pulls_back_the_tokens_with_the_largest_covariance(seed):
    new, batch = drawn(seed)
    varies = covariance(new, batch)
    count = int(0.1 * len(varies))
    most = sorted(varies, key=varies.get, reverse=True)[:count]
    expected = []
    for i in range(60):
        moved = float(new[i] - batch.old[i])
        pull = 2.0 * abs(moved) if i in most else 0.0
        expected.append(-math.exp(moved) * float(batch.advantages[i]) + pull if batch.mask[i] else 0.0)
    found = ours("kl_cov", new, batch, covariance_fraction=0.1, covariance_penalty=2.0).loss
    assert torch.where(batch.mask, found, 0.0).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_clip_cov_leaves_out_so_many_unclipped_tokens_between_its_bounds(seed):
    new, batch = drawn(seed)
    varies = covariance(new, batch)
    candidates = {i for i, c in varies.items() if 0.3 < c < 2.0 and not clipped(new, batch, i)[1]}
    options = {"covariance_fraction": 0.05, "covariance_low": 0.3, "covariance_high": 2.0}
    terms = ours("clip_cov", new, batch, **options)
    left_out = {i for i, marked in enumerate(batch.marks.tolist()) if marked}
    assert left_out <= candidates
    assert len(left_out) == min(len(candidates), int(0.05 * len(varies)))
    for i in varies:
        assert float(terms.loss[i]) == pytest.approx(0.0 if i in left_out else clipped(new, batch, i)[0])
    everything = ours("clip_cov", new, batch, **options | {"covariance_fraction": 1.0})
    assert {i for i, marked in enumerate(batch.marks.tolist()) if marked} == candidates
    assert everything.metrics["clip/fraction"][sorted(candidates)].tolist() == [1.0] * len(candidates)


def test_clip_cov_draws_each_candidate_equally_often():
    """One of ten equal candidates a thousand times, by other log-probs each time: 100 each, within five deviations."""
    counts, draw = [0] * 10, torch.Generator().manual_seed(5)
    for _ in range(1000):
        values = torch.cat([torch.full((10,), -0.1), torch.full((10,), -2.1)])
        gains = torch.tensor([1.5] * 10 + [-1.5] * 10)
        behavior = values + 1e-3 * torch.rand(20, generator=draw)
        batch = make_batch([20], behavior=behavior, advantages=gains)
        marks = LOSSES["clip_cov"].survey(values, batch, ALGO, same, covariance_fraction=0.05)
        counts = [count + int(mark) for count, mark in zip(counts, marks[:10], strict=True)]
    assert 350 < sum(counts) < 650  # the other half of the candidates has the same covariance
    assert max(abs(count - 50) for count in counts) < 5 * math.sqrt(50)


@pytest.mark.parametrize("limit", [0.01, 0.04, 0.1, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_m2po_leaves_out_the_furthest_until_the_rest_is_within_the_bound(seed, limit):
    """Algorithm 1: from the largest on, one after the other."""
    new, batch = drawn(seed)
    moved = (new - batch.old).tolist()
    inside = [i for i in range(60) if batch.mask[i] and moved[i] * float(batch.advantages[i]) > 0]
    inside.sort(key=lambda i: moved[i] ** 2)
    left_out = set()
    while inside and statistics.fmean(moved[i] ** 2 for i in inside) > limit:
        left_out.add(inside.pop())
    terms = ours("m2po", new, batch, second_moment_limit=limit)
    assert {i for i, marked in enumerate(batch.marks.tolist()) if marked} == left_out
    for i in range(60):
        if batch.mask[i]:
            plain = -math.exp(moved[i]) * float(batch.advantages[i])
            assert float(terms.loss[i]) == pytest.approx(0.0 if i in left_out else plain)


def test_m2po_by_hand():
    """Squares 0.01, 0.04 and 0.09 of good tokens that rose: their mean is 0.047, without the last 0.025; the two others moved against their advantage."""
    moved = torch.tensor([0.1, 0.2, 0.3, -1.0, 1.0])
    batch = make_batch([5], old=torch.full((5,), -2.0), advantages=[1.0, 1.0, 1.0, 1.0, -1.0])
    terms = ours("m2po", batch.old + moved, batch)
    assert batch.marks.tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
    expected = [-math.exp(0.1), -math.exp(0.2), 0.0, -math.exp(-1.0), math.exp(1.0)]
    assert terms.loss.tolist() == pytest.approx(expected)
    assert terms.metrics["clip/high"].tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("limit", [0.01, 0.04, 0.1, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_m2po_leaves_out_the_tokens_that_areal_masks(seed, limit):
    """AReaL looks at all tokens that it is given, our row at those that moved with their advantage: it is given these."""
    names = ("_apply_m2po_masking", "_get_m2po_loss_mask")
    masking, _ = published("areal", "areal/trainer/ppo/actor.py", names, {"torch": torch})
    new, batch = drawn(seed)
    inside = batch.mask & ((new - batch.old) * batch.advantages > 0)
    ours("m2po", new, batch, second_moment_limit=limit)
    kept = masking(batch.old[None], new[None], inside[None], limit)[0]
    assert torch.equal(inside & ~batch.marks.bool(), kept)


@pytest.mark.parametrize("wanted", [1, 3, 7, 8, 100])
def test_the_largest_numbers_of_both_signs_are_found(wanted):
    values = torch.tensor([0.0, -0.0, 3.5, -2.0, 1e-30, -1e30, 7.0, 2.0, 9.0])
    among = torch.tensor([True] * 8 + [False])
    order = sorted((float(v) for v in values[:8]), reverse=True)
    found = largest(values, among, wanted, same)
    last = order[min(wanted, 8) - 1]
    assert found.tolist() == [bool(kept) and float(v) >= last for v, kept in zip(values, among, strict=True)]


def test_without_log_probs_at_sampling_no_token_has_moved():
    new, batch = drawn(0)
    batch.old = None
    assert not log_ratio(new, batch).any()
    assert not LOSSES["m2po"].survey(new, batch, ALGO, same).any()
