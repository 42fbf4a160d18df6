"""Normed log-ratios and weights of steps of drawing against the papers' equations in plain Python."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from lightrft.algorithms.algorithm import build
from lightrft.config import AlgorithmConfig, DenoiseConfig
from lightrft.models.flows import STEPS, Step, logprob, normed
from lightrft.models.ladders import LADDERS
from lightrft.models.schedule import Schedule, likelihood
from lightrft.types import Batch
from lightrft.utils.imports import resolve

D = 6
NORMED = DenoiseConfig(likelihood="normed")


def drawn(noise="sde", rows=4):
    """Steps under new and old weights, and what was drawn under the old ones."""
    g = torch.Generator().manual_seed(3)
    x, v, other, e = (torch.randn(rows, 2, 3, generator=g, dtype=torch.float64) for _ in range(4))
    s = torch.tensor([1.0, 0.7, 0.4, 0.2], dtype=torch.float64)[:rows].view(-1, 1, 1)
    s, after = (1.05 - s, 1.12 - s) if noise == "ddim" else (s, s - 0.1)
    second = torch.tensor(0.9, dtype=torch.float64)
    new, old = (STEPS[noise](x, u, s, after, 0.7, second) for u in (v, v + 0.1 * other))
    return new, old, old.mean + old.sd * e, e


def plain_log_ratio(new, old, x, sd):
    """GRPO-Guard's: (log-ratio + |mean - mean_old|^2 / (2 sd^2)) sd, each a mean over the numbers of a state."""
    ratio = bias = 0.0
    for n, o, y in zip(new, old, x, strict=True):
        ratio += (-((y - n) ** 2) / (2 * sd * sd)) - (-((y - o) ** 2) / (2 * sd * sd))
        bias += (n - o) ** 2 / (2 * sd * sd)
    return (ratio / len(x) + bias / len(x)) * sd


@pytest.mark.parametrize("noise", ["sde", "dance", "cps", "ddim"])
def test_a_normed_log_ratio_is_that_of_its_paper_and_linear_in_the_noise(noise):
    new, old, x, e = drawn(noise)
    found = likelihood(NORMED, x, new, old.mean) - likelihood(NORMED, x, old, old.mean)
    for row in range(4):
        numbers = [t[row].flatten().tolist() for t in (new.mean, old.mean, x)]
        expected = plain_log_ratio(*numbers, new.sd[row].item())
        assert found[row].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        moved = sum(
            (n - o) * noise_drawn
            for n, o, noise_drawn in zip(*numbers[:2], e[row].flatten().tolist(), strict=True)
        )
        assert found[row].item() == pytest.approx(moved / D, rel=1e-8, abs=1e-12)


def test_its_mean_is_none_and_its_spread_the_same_at_every_level_of_noise_where_the_plain_one_is_biased():
    """Means that lie 0.02 apart in each number: the spread is 0.02 / sqrt(D); the plain one has the mean -KL."""
    g = torch.Generator().manual_seed(0)
    e = torch.randn(40_000, D, generator=g, dtype=torch.float64)
    for sd in (0.05, 0.5):
        step = Step(torch.full_like(e, 0.02), torch.full((len(e), 1), sd, dtype=torch.float64))
        old = Step(torch.zeros_like(e), step.sd)
        x = sd * e
        found = likelihood(NORMED, x, step, old.mean) - likelihood(NORMED, x, old, old.mean)
        assert abs(found.mean()) < 4 * found.std() / 200
        assert found.std().item() == pytest.approx(0.02 / math.sqrt(D), rel=0.02)
        plain = (logprob(x, step) - logprob(x, old)) / D
        assert plain.mean().item() == pytest.approx(-(0.02**2) / (2 * sd**2), rel=0.1)


def test_at_the_weights_that_drew_it_is_the_log_prob_times_the_deviation_and_has_a_gradient_in_the_noise():
    new, _, x, e = drawn()
    x, mean = new.mean + new.sd * e, new.mean.clone().requires_grad_(True)
    found = normed(logprob(x, Step(mean, new.sd)) / D, Step(mean, new.sd), new.mean, 1 / D)
    torch.testing.assert_close(found.detach(), new.sd.flatten() * logprob(x, new) / D, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(found.sum(), mean)
    torch.testing.assert_close(slope, e / D, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("weighting", "noise"), [("noise", "sde"), ("noise", "dance"), ("inverse_span", "sde"), ("even", "match")]
)
def test_the_weights_of_steps_are_those_of_the_paper_over_their_mean(weighting, noise):
    diffusers = pytest.importorskip("diffusers")
    pipeline = SimpleNamespace(
        ladder=LADDERS["FlowMatchEulerDiscreteScheduler"],
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        family=SimpleNamespace(even=False),
    )
    config = DenoiseConfig(
        steps=8, first=1, until=6, window=2, move="random", noise=noise, weighting=weighting
    )
    schedule = Schedule(pipeline, config, 8, 16)
    sigmas = [*schedule.levels.before.tolist(), 0.0]
    raw = []
    for s, after in list(pairwise(sigmas))[1:]:
        g = 0.7 * math.sqrt(s / (1 - s)) if noise == "sde" else 0.7
        raw.append(
            {"noise": g * math.sqrt(s - after), "inverse_span": 1 / (s - after), "even": 1.0}[weighting]
        )
    expected = [w / (sum(raw[:5]) / 5) for w in raw]
    assert schedule.weights.tolist()[1:] == pytest.approx(expected, rel=1e-5)
    assert 0 < schedule.weights[0] < 10, "a response from before `first` was raised still teaches"


def test_the_policy_loss_is_weighed_and_the_divergence_is_not():
    algorithm = build(AlgorithmConfig(loss="clipped", kl="exact", kl_coefficient=0.5), resolve)
    none = torch.zeros(3)
    batch = Batch(
        segments=torch.tensor([0, 0, 1]), groups=torch.tensor([0, 0]), mask=torch.ones(3, dtype=torch.bool),
        scores=torch.zeros(2), weights=torch.ones(3), behavior=none, old=none, ref=none,
        advantages=torch.tensor([1.0, 1.0, -2.0]), divergence=torch.tensor([0.2, 0.4, 0.6]),
        step_weights=torch.tensor([0.5, 2.0, 0.5]),
    )  # fmt: skip
    found = algorithm.loss(none, batch)
    assert found.loss.tolist() == pytest.approx([-0.5 + 0.1, -2.0 + 0.2, 1.0 + 0.3])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"weighting": "inverse_span", "noise": "dance"}, "weighting=inverse_span with rollout.denoise.noise=dance"),
        ({"likelihood": "normed", "noise": "match"}, "likelihood=normed with rollout.denoise.noise=match"),
        ({"weighting": "noise", "noise": "match"}, "weighting=noise with rollout.denoise.noise=match"),
        ({"weighting": "inverse_span", "noise": "ddim", "level": 1.0}, "weighting=inverse_span with rollout.denoise.noise=ddim"),
    ],
)  # fmt: skip
def test_what_looks_at_a_step_is_refused_where_there_is_none(options, told):
    with pytest.raises(ValueError, match=rf"rollout\.denoise\.{told}: .* Set rollout.denoise.noise=sde"):
        DenoiseConfig(**options)
