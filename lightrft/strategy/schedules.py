"""Learning-rate schedules by the names that transformers has for them."""

from __future__ import annotations

import math
from collections.abc import Callable

from lightrft.config import OptimizerConfig

Fall = Callable[[OptimizerConfig, int, int], float]
"""Settings, updates since the warm-up, updates after it in all -> how much of the way down is left, from 1 to 0."""


def _done(since: int, length: int) -> float:
    return min(1.0, since / max(1, length))


def _half_wave(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _restarts(config: OptimizerConfig, since: int, length: int) -> float:
    done = _done(since, length)
    return _half_wave(config.cycles * done % 1.0) if done < 1 else 0.0


def _inverse_sqrt(config: OptimizerConfig, since: int, length: int) -> float:  # noqa: ARG001  # as Fall has it
    scale = config.warmup_steps or 10_000
    return 1 / math.sqrt(1 + since / scale)


def _stable(config: OptimizerConfig, since: int, length: int) -> float:
    return _half_wave(_done(max(0, since - (length - config.decay_steps)), config.decay_steps))


SCHEDULES: dict[str, Fall] = {
    "constant": lambda _config, _since, _length: 1.0,
    "linear": lambda _config, since, length: 1 - _done(since, length),
    "cosine": lambda _config, since, length: _half_wave(_done(since, length)),
    "cosine_with_restarts": _restarts,
    "polynomial": lambda config, since, length: (1 - _done(since, length)) ** config.power,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _stable,
}


def schedule(config: OptimizerConfig, total_updates: int) -> Callable[[int], float]:
    """Share of the peak learning rate at update 0, 1, ..., total_updates - 1.

    Warm-up rises over `warmup_steps` updates and reaches 1 at the last of them; what follows falls towards `final_fraction`, which
    would be that of the update after the last: so with 0 the last one still learns, as in transformers.
    """
    warmup, final, fall = config.warmup_steps, config.final_fraction, SCHEDULES[config.schedule]

    def rate(update: int) -> float:
        if update < warmup:
            return (update + 1) / warmup
        return final + (1 - final) * fall(config, update - warmup, total_updates - warmup)

    return rate
