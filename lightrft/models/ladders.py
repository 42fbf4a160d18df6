"""Noise schedules: the levels of noise a picture goes through, and what a network's prediction means at each. A row for each scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightrft.models.flows import ddim_exact, euler, noised


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
    velocity: Callable[[Any, Tensor, Tensor, Tensor], Tensor] = lambda scheduler, x, found, level: found  # noqa: ARG005  # flows predict it
    """Scheduler, state, what the network predicts, level -> velocity."""
    noised: Callable[[Any, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = lambda scheduler, x, e, level: (  # noqa: ARG005  # as above
        noised(x, e, level)
    )
    """Scheduler, pictures, noise, level -> the noised state, and what the network should predict there."""
    problem: Callable[[Mapping[str, Any]], str] = lambda scheduler: ""  # noqa: ARG005  # as the other
    """Settings of the scheduler -> why its steps cannot be learned from, with the cure; empty: they can."""


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


def _diffusion_levels(scheduler: Any, steps: int, positions: int, even: bool) -> Levels:  # noqa: ARG001  # they depend on neither
    """Cumulated alphas; a step ends where the scheduler's does, which may not be where the next begins."""
    scheduler.set_timesteps(steps)
    times, alphas = scheduler.timesteps, scheduler.alphas_cumprod
    earlier = times - scheduler.config.num_train_timesteps // steps
    after = torch.where(earlier >= 0, alphas[earlier.clamp(min=0)], scheduler.final_alpha_cumprod)
    return Levels(alphas[times].float(), after.float(), times.float())


def _diffusion_problem(scheduler: Mapping[str, Any]) -> str:
    for setting in ("clip_sample", "thresholding"):
        if scheduler.get(setting):
            return (
                f"has {setting}, which cuts pictures on the way, so that a step's likelihood is not that of a normal distribution. Save the "
                f"pipeline with {setting}=False"
            )
    kind = scheduler.get("prediction_type", "epsilon")
    if scheduler.get("rescale_betas_zero_snr") and kind == "epsilon":
        return (
            "has rescale_betas_zero_snr and prediction_type=epsilon, and of pure noise no picture can be told from its noise. Save the pipeline "
            "with rescale_betas_zero_snr=False, or take one with prediction_type=v_prediction"
        )
    known = ", ".join(PREDICTIONS)
    return (
        ""
        if kind in PREDICTIONS
        else f"has prediction_type={kind}, and known are: {known}. Take another pipeline"
    )


PREDICTIONS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, e, a: (e - (1 - a).sqrt() * x) / a.sqrt(),
    "v_prediction": lambda x, v, a: v,  # noqa: ARG005  # as the others
    "sample": lambda x, x0, a: (a.sqrt() * x - x0) / (1 - a).sqrt(),
}
"""What a diffusion network predicts -> state, prediction, cumulated alpha -> v = sqrt(a) e - sqrt(1 - a) x_0."""


def _diffusion_velocity(scheduler: Any, x: Tensor, found: Tensor, a: Tensor) -> Tensor:
    return PREDICTIONS[scheduler.config.prediction_type](x, found, a)


TARGETS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x0, e, a: e,  # noqa: ARG005  # as the others
    "v_prediction": lambda x0, e, a: a.sqrt() * e - (1 - a).sqrt() * x0,
    "sample": lambda x0, e, a: x0,  # noqa: ARG005
}
"""What a diffusion network predicts -> picture, noise, cumulated alpha -> what that is."""


def _diffusion_noised(scheduler: Any, x: Tensor, e: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    return a.sqrt() * x + (1 - a).sqrt() * e, TARGETS[scheduler.config.prediction_type](x, e, a)


LADDERS: dict[str, Ladder] = {
    "FlowMatchEulerDiscreteScheduler": Ladder(_flow_levels, ("sde", "dance", "cps", "match"), euler),
    "DDIMScheduler": Ladder(
        _diffusion_levels,
        ("ddim",),
        ddim_exact,
        velocity=_diffusion_velocity,
        noised=_diffusion_noised,
        problem=_diffusion_problem,
    ),
}
"""Class of the scheduler -> how it steps."""
