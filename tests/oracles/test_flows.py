"""Steps of a flow against the papers' equations in plain Python, torch's own normal distribution, and exact propagation."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lightrft.config import DenoiseConfig
from lightrft.models.flows import STEPS, Step, divergence, entropy, euler, logprob
from lightrft.models.ladders import LADDERS
from lightrft.models.schedule import window

D = 12


def drawn(seed=0, rows=5, noise="sde"):
    g = torch.Generator().manual_seed(seed)
    x, v, other = (torch.randn(rows, 3, 4, generator=g, dtype=torch.float64) for _ in range(3))
    s = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64)[:rows].view(-1, 1, 1)
    return (x, v, other, 1.05 - s, 1.1 - s) if noise == "ddim" else (x, v, other, s, s - 0.1)


def step_of(noise, x, v, s, after, level=0.7):
    return STEPS[noise](x, v, s, after, level, torch.tensor(0.9, dtype=torch.float64))


def plain_step(noise, x, v, s, after, level, second):
    """Mean and deviation of one number, from the papers."""
    if noise == "ddim":  # DDIM, eq. 12 and 16: s and after are the cumulated alphas
        x0, e = math.sqrt(s) * x - math.sqrt(1 - s) * v, math.sqrt(s) * v + math.sqrt(1 - s) * x
        sd = level * math.sqrt((1 - after) / (1 - s)) * math.sqrt(1 - s / after)
        return math.sqrt(after) * x0 + math.sqrt(1 - after - sd**2) * e, sd
    if noise == "match":  # no step: the error of the velocity, in units of level
        return v, level
    dt = after - s
    if noise == "cps":
        sd = after * math.sin(level * math.pi / 2)
        x0, x1 = x - s * v, x + (1 - s) * v
        return (1 - after) * x0 + math.sqrt(after**2 - sd**2) * x1, sd
    # One SDE: dx = [v + g^2 / 2s (x + (1 - s) v)] dt + g dw; Flow-GRPO's g falls with s, DanceGRPO's is constant.
    g = level * math.sqrt(s / (1 - (second if s == 1 else s))) if noise == "sde" else level
    return x + (v + g * g / (2 * s) * (x + (1 - s) * v)) * dt, g * math.sqrt(-dt)


@pytest.mark.parametrize("noise", STEPS)
def test_a_step_is_that_of_its_paper_number_by_number(noise):
    x, v, _, s, after = drawn(noise=noise)
    step = step_of(noise, x, v, s, after)
    for row in range(5):
        for i in range(3):
            for k in range(4):
                mean, sd = plain_step(
                    noise,
                    x[row, i, k].item(),
                    v[row, i, k].item(),
                    s[row].item(),
                    after[row].item(),
                    0.7,
                    0.9,
                )
                assert step.mean[row, i, k].item() == pytest.approx(mean, abs=1e-12)
                assert step.sd[row].item() == pytest.approx(sd, abs=1e-12)


def test_the_first_step_of_a_schedule_by_hand():
    """s = 1, next 0.9, level 0.7: g^2 = 0.49 / 0.1 = 4.9; mean = 2 (1 - 0.245) + 3 (-0.1) = 1.21, deviation = sqrt(0.49) = 0.7."""
    x, v, s, after = (torch.full((1, 1, 1), n, dtype=torch.float64) for n in (2.0, 3.0, 1.0, 0.9))
    step = step_of("sde", x, v, s, after)
    assert (step.mean.item(), step.sd.item()) == (pytest.approx(1.21), pytest.approx(0.7))


@pytest.mark.parametrize("noise", STEPS)
def test_log_prob_entropy_and_divergence_are_those_of_a_normal_distribution(noise):
    x, v, other, s, after = drawn(1, noise=noise)
    step, ref = step_of(noise, x, v, s, after), step_of(noise, x, other, s, after)
    mine, theirs = Normal(step.mean, step.sd), Normal(ref.mean, ref.sd)
    torch.testing.assert_close(
        logprob(other, step), mine.log_prob(other).flatten(1).sum(1), rtol=1e-13, atol=1e-12
    )
    torch.testing.assert_close(entropy(step), mine.entropy().flatten(1).sum(1), rtol=1e-13, atol=1e-12)
    found = divergence(step, ref.mean)
    torch.testing.assert_close(found, kl_divergence(mine, theirs).flatten(1).sum(1), rtol=1e-12, atol=1e-12)


def test_the_divergence_of_flow_grpo_has_the_step_in_it_and_a_gradient():
    """(|dt| / 2) (g (1 - s) / 2s + 1 / g)^2 |v - v_ref|^2, which published code has without |dt|."""
    x, v, other, s, after = drawn(2)
    g = 0.7 * torch.sqrt(s / (1 - torch.where(s == 1, 0.9, s)))
    weight = (s - after) / 2 * (g * (1 - s) / (2 * s) + 1 / g) ** 2
    v.requires_grad_(True)
    found = divergence(step_of("sde", x, v, s, after), step_of("sde", x, other, s, after).mean)
    torch.testing.assert_close(found, (weight * (v - other) ** 2).flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(found.sum(), v)
    torch.testing.assert_close(slope, (2 * weight * (v - other)).detach(), rtol=1e-9, atol=1e-10)
    assert slope.abs().min() > 0


def test_the_divergence_is_the_mean_log_ratio_of_what_is_drawn():
    x, v, other, s, after = (t[2:3] for t in drawn(3))
    step, ref = step_of("sde", x, v, s, after), step_of("sde", x, v + 0.3 * other, s, after)
    g = torch.Generator().manual_seed(0)
    new = step.mean + step.sd * torch.randn(100_000, 3, 4, generator=g, dtype=torch.float64)
    ratio = logprob(new, step) - logprob(new, Step(ref.mean, ref.sd))
    assert abs(ratio.mean() - divergence(step, ref.mean)) < 3 * ratio.std() / len(ratio) ** 0.5
    # The log-ratio of a step is normal with twice its mean as variance: its own law.
    assert ratio.var().item() == pytest.approx(2 * ratio.mean().item(), rel=0.05)


def propagated(noise, steps, level):
    """Deviation of what is drawn when the data are N(1, 0.5^2) and the velocity is exact: each step is affine."""
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    mean, var = 0.0, 1.0
    worst = 0.0
    for s, after in pairwise(sigmas):
        spread = (1 - s) ** 2 * 0.25 + s**2

        def ahead(x, s=s, after=after, spread=spread):
            v = (s - (1 - s) * 0.25) / spread * (x - (1 - s)) - 1
            if noise == "ode" or after == 0:
                return Step(euler(x, v, s, after), torch.zeros((), dtype=torch.float64))
            return STEPS[noise](x, v, s, after, level, sigmas[1])

        zero, one = ahead(torch.zeros((), dtype=torch.float64)), ahead(torch.ones((), dtype=torch.float64))
        slope = one.mean - zero.mean
        mean, var = slope * mean + zero.mean, slope**2 * var + zero.sd**2
        exact = ((1 - after) ** 2 * 0.25 + after**2).sqrt()
        worst = max(worst, abs(var.sqrt() / exact - 1).item())
    return var.sqrt().item(), worst


def test_the_flow_and_dance_keep_the_distribution_of_the_data_as_steps_become_short():
    for noise, level in (("ode", 0.0), ("dance", 0.3)):
        errors = [abs(propagated(noise, n, level)[0] - 0.5) for n in (10, 40, 160)]
        assert errors[0] > errors[1] > errors[2]
        assert propagated(noise, 1000, level)[1] < 0.004
    end, worst = propagated("sde", 1000, 0.7)
    assert end == pytest.approx(0.5, rel=0.003)
    assert worst < 0.05  # its first step


def test_coefficients_preserving_noise_does_not_keep_the_distribution_however_short_the_steps():
    """Data of deviation 0.5 come out narrower, and more so at a higher level."""
    for steps in (10, 100, 1000):
        assert 0.3 < propagated("cps", steps, 0.8)[0] < propagated("cps", steps, 0.7)[0] < 0.44


def test_noise_that_keeps_coefficients_is_at_its_highest_level_the_stochastic_step_of_diffusers():
    """Their next state is (1 - s') x_0 + s' e with new noise e, so that its log-prob is that of a normal distribution around (1 - s') x_0."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)
    levels = LADDERS["FlowMatchEulerDiscreteScheduler"].levels(scheduler, 7, 0, False)
    x, v = (t.float() for t in drawn(8, rows=1)[:2])
    for place, time in enumerate(scheduler.timesteps[:-1]):
        s, after = (t[place].view(1, 1, 1) for t in levels[:2])
        torch.manual_seed(place)
        theirs = scheduler.step(v, time, x).prev_sample
        torch.manual_seed(place)
        noise = torch.randn_like(x)
        step = STEPS["cps"](x, v, s, after, 1.0, s)
        torch.testing.assert_close(step.mean + step.sd * noise, theirs, rtol=1e-5, atol=1e-5)
        expected = Normal((1 - after) * (x - s * v), after).log_prob(theirs)
        torch.testing.assert_close(logprob(theirs, step), expected.flatten(1).sum(1), rtol=1e-5, atol=1e-4)


def test_the_window_is_of_the_seed_and_the_version_alone_and_never_holds_the_last_step():
    random = DenoiseConfig(steps=10, window=2, move="random")
    places = {window(random, seed, 0).start for seed in range(200)}
    assert places == set(range(8))
    assert window(random, 5, 0) == window(random, 5, 99)
    moving = DenoiseConfig(steps=10, window=4, first=1, move="progressive", move_every=3)
    starts = [window(moving, seed, version).start for seed, version in enumerate(range(0, 21, 3))]
    assert starts == [1, 2, 3, 4, 5, 1, 2]
    assert window(DenoiseConfig(steps=10), 0, 0) == range(9)
    half = DenoiseConfig(steps=10, window=2, move="random", until=5)
    assert {window(half, seed, 0).start for seed in range(100)} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 8, "window": 8},
        {"steps": 8, "first": 7},
        {"steps": 8, "first": 4, "window": 4},
        {"until": 10},
    ],
)
def test_the_last_step_cannot_be_learned_from(options):
    with pytest.raises(ValueError, match=r"rollout\.denoise\.first=.*Lower"):
        DenoiseConfig(**options)


@pytest.mark.parametrize("noise", ["cps", "ddim"])
def test_no_more_noise_is_taken_out_than_there_is(noise):
    DenoiseConfig(noise=noise, level=1.0)
    with pytest.raises(
        ValueError, match=rf"rollout.denoise.level=1.2: with rollout.denoise.noise={noise} it is a share"
    ):
        DenoiseConfig(noise=noise, level=1.2)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_step_of_ddim_has_the_mean_and_the_deviation_of_diffusers(kind, spacing):
    """Of every step of a schedule that noise may enter: without it at eta 0, and at eta 1 by the difference that one drawn number makes."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, prediction_type=kind, timestep_spacing=spacing, steps_offset=spacing == "leading"
    )  # fmt: skip
    ladder, steps = LADDERS["DDIMScheduler"], 7
    levels = ladder.levels(scheduler, steps, 0, False)
    x, found, drawn_number, *_ = drawn(5, rows=1)
    for place, time in enumerate(scheduler.timesteps[:-1]):  # the last one is never learned from
        a, after = (t[place].double().view(1, 1, 1) for t in levels[:2])
        v = ladder.velocity(scheduler, x, found, a)
        mean, sd = STEPS["ddim"](x, v, a, after, 1.0, a)
        nothing = torch.zeros_like(x)
        theirs = scheduler.step(found, time, x, eta=1.0, variance_noise=nothing).prev_sample
        moved = scheduler.step(found, time, x, eta=1.0, variance_noise=drawn_number).prev_sample
        close = {"rtol": 1e-5, "atol": 1e-5}  # their alphas are float32
        torch.testing.assert_close(mean, theirs, **close)
        torch.testing.assert_close(sd * drawn_number, moved - theirs, **close)
        torch.testing.assert_close(
            ladder.exact(x, v, a, after), scheduler.step(found, time, x).prev_sample, **close
        )
        expected = Normal(theirs, scheduler._get_variance(time, time - 1000 // steps).sqrt()).log_prob(moved)
        torch.testing.assert_close(
            logprob(moved, Step(mean, sd)), expected.flatten(1).sum(1), rtol=1e-4, atol=1e-3
        )


def test_the_divergence_of_ddim_is_that_of_the_two_noises_it_was_told():
    """KL = c^2 |e - e_ref|^2 / (2 sd^2), c = sqrt(a' / a) sqrt(1 - a) - sqrt(1 - a' - sd^2), with a gradient."""
    x, e, other, a, after = drawn(6, noise="ddim")
    e.requires_grad_(True)
    turn = LADDERS["DDIMScheduler"].velocity
    kind = SimpleNamespace(config=SimpleNamespace(prediction_type="epsilon"))
    step, ref = (step_of("ddim", x, turn(kind, x, noise, a), a, after, 1.0) for noise in (e, other))
    c = (after * (1 - a) / a).sqrt() - (1 - after - step.sd**2).sqrt()
    expected = (c**2 * (e - other) ** 2 / (2 * step.sd**2)).flatten(1).sum(1)
    found = divergence(step, ref.mean)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    (slope,) = torch.autograd.grad(found.sum(), e)
    torch.testing.assert_close(slope, (c**2 / step.sd**2 * (e - other)).detach(), rtol=1e-8, atol=1e-9)
