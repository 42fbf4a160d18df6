"""Runs of a tiny model in this process, a step at a time, and what they learned from."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from dataclasses import replace

from lightrft.build.rl import build_run
from lightrft.config import Config, layers
from lightrft.trainer.rl import RLTrainer

SMALL = [
    *("tiny", "grpo", "--evaluate.before-and-after", "false", "--log.tensorboard", "false"),
    *("--log.progress", "false", "--checkpoint.every-steps", "0", "--rewards.workers", "0"),
    *("--steps", "9", "--optimizer.learning-rate", "0.02", "--tasks.train-limit", "100"),
]


@functools.cache
def base():
    return layers.load(SMALL, Config)


def with_settings(settings):
    """The small run with other settings, set together: some are refused without others."""
    return _replaced(base(), settings)


def _replaced(section, settings):
    """A section with the options of these dotted names set, all of one section together."""
    own, below = {}, defaultdict(dict)
    for name, value in settings.items():
        first, _, rest = name.partition(".")
        if rest:
            below[first][rest] = value
        else:
            own[first] = value
    own |= {name: _replaced(getattr(section, name), inner) for name, inner in below.items()}
    return replace(section, **own)


class Looking(RLTrainer):
    """Remembers what was learned from in each step."""

    def record(self, step, metrics, trajectories):
        self.seen = {**getattr(self, "seen", {}), step: trajectories}
        self.told = {**getattr(self, "told", {}), step: metrics}
        super().record(step, metrics, trajectories)


def go_on(folder, until, settings, *, resume=True):
    """Takes the steps of a run up to one, and saves it; its trainer, which knows what it learned from."""
    with contextlib.ExitStack() as stack:
        run = build_run(with_settings(settings), folder, stack, started=time.perf_counter(), resume=resume)
        run.trainer.__class__ = Looking
        run.begin()
        for step in range(run.done + 1, until + 1):
            run.take(step)
        run.save_now()
        return run.trainer


def begin(folder, until, settings):
    return go_on(folder, until, settings, resume=False)
