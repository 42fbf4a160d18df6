"""What the commands that learn from given responses share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightrft.commands.claim import claimed
from lightrft.config import OfflineConfig, command_of
from lightrft.parallel.world import World
from lightrft.runs.curves import finish_curves
from lightrft.runs.folder import keep_settings
from lightrft.runs.layout import RunFolder
from lightrft.trainer.run import Run
from lightrft.utils.atomic import explained
from lightrft.utils.device import pick_device
from lightrft.utils.paths import without_home

Measured = Callable[[dict[str, dict[str, float]]], dict[str, Any]]
"""What the summary says of the held-out measurements, by label."""
Report = Callable[[dict[str, Any], Path], None]
"""Prints a summary."""


def train(
    config: OfflineConfig, resume: Path | None, build: Callable[..., Run], measured: Measured, report: Report
) -> Path:
    """Runs or goes on with a run that `build` makes, and returns its folder. Errors in settings come before any weight loads.

    Raises Stopped, after saving, if SIGTERM or Ctrl-C came.
    """
    started = time.perf_counter()
    with (
        World.joined(pick_device(config.strategy.device), config.strategy.timeout_seconds) as world,
        claimed(config, resume, world, command_of(config)) as (run, again, terminal),
        contextlib.ExitStack() as stack,
    ):
        made = build(config, run, stack, started=started, resume=again)
        terminal.show = made.journal.progress.note
        if again and world.is_first:
            keep_settings(run, config, made.done, made.steps)
        made.train()
        if world.is_first:
            with explained(run):
                stack.close()  # the live picture ends, files are complete
                finish(config, made, measured, report)
    return run


def finish(config: OfflineConfig, made: Run, measured: Measured, report: Report) -> None:
    """Summary, picture and report of a finished run."""
    ends = {k: v for k, v in made.evaluations.items() if k in ("before", "after")}
    summary = {
        "seconds": round(made.seconds, 1),
        "steps": made.done,
        "seed": config.seed,
        "model": without_home(config.model.path),
        **measured(ends),
    }
    RunFolder(made.folder).write_summary(summary)
    finish_curves(made.folder, wanted=config.log.curves)
    report(summary, made.folder)
