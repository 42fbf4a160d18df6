"""One step from noise to data: its mean and deviation, and what follows of them. Pure functions.

Notation of flows, from noise (sigma 1) to data (sigma 0): x_s = (1 - s) x_0 + s e, velocity v = e - x_0, a step from s to s' < s, dt = s' - s. States are (T, ...), s and s' (T,)
shaped to go with them. Every function of STEPS gives the mean (as x) and the deviation (as s) of the next state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """The normal distribution of the next state."""

    mean: Tensor
    """(T, ...)"""
    sd: Tensor
    """(T, 1, ...), the same for all numbers of a state."""


def euler(x: Tensor, v: Tensor, s: Tensor, after: Tensor) -> Tensor:
    """The exact step, without noise: x + v dt (diffusers' FlowMatchEulerDiscreteScheduler)."""
    return x + (after - s) * v


def sde(x: Tensor, v: Tensor, s: Tensor, after: Tensor, level: float, second: Tensor) -> Step:
    """Flow-GRPO (Liu et al. 2025, https://arxiv.org/abs/2505.05470, eq. 9).

    g = level sqrt(s / (1 - s)); mean = x (1 + g^2 dt / 2s) + v (1 + g^2 (1 - s) / 2s) dt, deviation = g sqrt(-dt). At s = 1 the
    second sigma of the schedule stands in the denominator of g, as in their code. They use level 0.7.
    """
    g = level * torch.sqrt(s / (1 - torch.where(s == 1, second, s)))
    dt = after - s
    mean = x * (1 + g**2 / (2 * s) * dt) + v * (1 + g**2 * (1 - s) / (2 * s)) * dt
    return Step(mean, g * (-dt).sqrt())


def dance(x: Tensor, v: Tensor, s: Tensor, after: Tensor, level: float, second: Tensor) -> Step:  # noqa: ARG001
    """DanceGRPO (Xue et al. 2025, https://arxiv.org/abs/2505.07818): the same equation with the constant g = level (eta; theirs 0.3).

    mean = x + v dt + (level^2 / 2) (x - (1 - s)(x - s v)) / s^2 dt, deviation = level sqrt(-dt).
    """
    dt = after - s
    mean = x + v * dt + level**2 / 2 * (x - (1 - s) * (x - s * v)) / s**2 * dt
    return Step(mean, level * (-dt).sqrt())


def cps(x: Tensor, v: Tensor, s: Tensor, after: Tensor, level: float, second: Tensor) -> Step:  # noqa: ARG001
    """Flow-CPS (Wang et al. 2025, https://arxiv.org/abs/2509.05952): the noise that is put in is taken out of the old noise.

    deviation = s' sin(level pi / 2); mean = (1 - s')(x - s v) + sqrt(s'^2 - deviation^2) (x + (1 - s) v). It keeps the noise level of
    each state, not its distribution: drawn pictures are less diverse than those of the flow. Their code leaves the 1 / (2 deviation^2)
    out of the log-prob; here it stands in it.
    """
    sd = after * math.sin(level * math.pi / 2)
    mean = (1 - after) * (x - s * v) + (after**2 - sd**2).clamp(min=0).sqrt() * (x + (1 - s) * v)
    return Step(mean, sd)


def ddim(x: Tensor, v: Tensor, a: Tensor, after: Tensor, level: float, second: Tensor) -> Step:  # noqa: ARG001
    """A step of a diffusion model by DDIM (Song et al. 2020, https://arxiv.org/abs/2010.02502, eq. 12 and 16), as DDPO learns it (Black et
    al. 2023, https://arxiv.org/abs/2305.13301) with eta = level = 1.

    Here `a` and `after` are the cumulated alphas of the states, x_a = sqrt(a) x_0 + sqrt(1 - a) e, and v = sqrt(a) e - sqrt(1 - a) x_0 (Salimans
    and Ho 2022, https://arxiv.org/abs/2202.00512). deviation = level sqrt((1 - a') / (1 - a) (1 - a / a')), mean = sqrt(a') x_0 +
    sqrt(1 - a' - deviation^2) e. A picture without noise at its end has no last step with a deviation.
    """
    x0, noise = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
    sd = level * ((1 - after) / (1 - a) * (1 - a / after)).clamp(min=0).sqrt()
    return Step(after.sqrt() * x0 + (1 - after - sd**2).clamp(min=0).sqrt() * noise, sd)


def ddim_exact(x: Tensor, v: Tensor, a: Tensor, after: Tensor) -> Tensor:
    """The step of `ddim` without noise."""
    return ddim(x, v, a, after, 0.0, after).mean


def match(x: Tensor, v: Tensor, s: Tensor, after: Tensor, level: float, second: Tensor) -> Step:  # noqa: ARG001
    """Not a step but a guess, of the velocity of a picture that was noised anew (`noised`), as Advantage Weighted Matching learns it (Xue et
    al. 2025, https://arxiv.org/abs/2509.25050): log p = -w |v - (e - x_0)|^2 with w = 1 / (2 level^2), and what does not depend on v.

    mean = v, deviation = level. With advantage 1 and one update its gradient is that of flow matching.
    """
    return Step(v, torch.full_like(s, level))


def noised(x: Tensor, e: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The state of a flow at level s between a picture x and noise e, and its true velocity."""
    return (1 - s) * x + s * e, e - x


STEPS: Mapping[str, Callable[[Tensor, Tensor, Tensor, Tensor, float, Tensor], Step]] = {
    "sde": sde,
    "dance": dance,
    "cps": cps,
    "ddim": ddim,
    "match": match,
}
"""rollout.denoise.noise -> state, velocity, level of noise, next one, strength, second level of the schedule -> the next state."""
AFTERWARDS = ("match",)
"""Noises that enter none of the steps on the way: entries are levels at which the finished picture is noised anew."""


def logprob(x: Tensor, step: Step) -> Tensor:
    """(T,) log density of x, summed over its numbers."""
    each = -((x - step.mean) ** 2) / (2 * step.sd**2) - step.sd.log() - 0.5 * math.log(2 * math.pi)
    return each.flatten(1).sum(1)


def normed(logps: Tensor, step: Step, drawn: Tensor, scale: float) -> Tensor:
    """(T,) log-probs whose differences are the normalised log-ratios of GRPO-Guard (Wang et al. 2025, https://arxiv.org/abs/2510.22319, RatioNorm).

    `logps` (T,) are those of the steps times `scale`, `drawn` (T, ...) the means x was drawn around: sd (log p + scale |mean - drawn|^2 / 2 sd^2). For
    x = drawn + sd e, where new and old have one deviation, new - old is scale (mean_new - mean_old) . e when old is `drawn`: of mean 0 over e, whatever
    the level of noise, where the plain one has the mean -KL and a spread that goes with 1 / sd. It is linear in the mean.
    """
    return step.sd.flatten(1)[:, 0] * (logps + scale * divergence(step, drawn))


def entropy(step: Step) -> Tensor:
    """(T,) nats, summed over the numbers of a state."""
    each = 0.5 * math.log(2 * math.pi * math.e) + step.sd.log()
    return each.expand_as(step.mean).flatten(1).sum(1)


def divergence(step: Step, reference: Tensor) -> Tensor:
    """(T,) KL(step || the same deviation around `reference`), in closed form: |mean - reference|^2 / (2 sd^2), with its gradient.

    Of Flow-GRPO's step that is (|dt| / 2) (g (1 - s) / 2s + 1 / g)^2 |v - v_ref|^2; published code leaves the |dt| out.
    """
    return ((step.mean - reference) ** 2 / (2 * step.sd**2)).flatten(1).sum(1)
