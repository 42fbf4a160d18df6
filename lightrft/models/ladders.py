"""Noise schedules: the levels of noise a picture goes through, and what a network's prediction means at each. A row for each scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightrft.models.flows import euler


class Levels(NamedTuple):
    """Levels of noise, one for each step."""

    before: Tensor
    """(steps,) float32: of the state that a step begins with."""
    after: Tensor
    """(steps,) float32: of the state that it ends with."""
    times: Tensor
    """(steps,) float32: as the network is told them."""


@dataclass(frozen=True)
class Ladder:
    """How one class of schedulers steps from noise to a picture."""

    levels: Callable[[Any, int, int, bool], Levels]
    """Scheduler, steps, positions of a state, even sigmas -> levels of noise."""
    noises: tuple[str, ...]
    """Values of rollout.denoise.noise that it steps with."""
    exact: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """State, velocity, level, next level -> the next state without noise."""


def _flow_levels(scheduler: Any, steps: int, positions: int, even: bool) -> Levels:
    options: dict[str, Any] = {}
    if scheduler.config.get("use_dynamic_shifting"):
        options["mu"] = shift(scheduler.config, positions)
    if even:
        options["sigmas"] = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy()
    scheduler.set_timesteps(steps, **options)
    sigmas, times = scheduler.sigmas.float().clone(), scheduler.timesteps.float().clone()
    return Levels(sigmas[:-1], sigmas[1:], times)


def shift(config: Any, positions: int) -> float:
    """How far a dynamic schedule is shifted for so many positions: a straight line, as in diffusers' pipelines (calculate_shift)."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - base) / (high - low)
    return float(positions * slope + base - slope * low)


LADDERS: dict[str, Ladder] = {
    "FlowMatchEulerDiscreteScheduler": Ladder(_flow_levels, ("sde", "dance", "cps"), euler),
}
"""Class of the scheduler -> how it steps."""
