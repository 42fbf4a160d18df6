"""`lightrft train`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from lightrft.build.rl import build_run
from lightrft.commands.claim import claimed
from lightrft.config import Config
from lightrft.console.progress import report
from lightrft.parallel.world import World
from lightrft.runs.curves import finish_curves
from lightrft.runs.folder import keep_settings
from lightrft.runs.layout import RunFolder
from lightrft.runs.summary import evaluation_summary, samples
from lightrft.trainer.run import Run
from lightrft.utils.atomic import explained
from lightrft.utils.device import pick_device
from lightrft.utils.paths import without_home


def train(config: Config, resume: Path | None = None) -> Path:
    """Runs or goes on with a training run and returns its folder. Errors in settings come before any weight loads.

    Raises Stopped, after saving, if SIGTERM or Ctrl-C came.
    """
    started = time.perf_counter()
    with (
        World.joined(pick_device(config.strategy.device), config.strategy.timeout_seconds) as world,
        claimed(config, resume, world, "train") as (run, again, terminal),
        contextlib.ExitStack() as stack,
    ):
        made = build_run(config, run, stack, started=started, resume=again)
        terminal.show = made.journal.progress.note
        if again and world.is_first:
            keep_settings(run, config, made.done, made.steps)
        made.train()
        if world.is_first:
            with explained(run):
                finish(config, made, stack)
    return run


def finish(config: Config, made: Run, stack: contextlib.ExitStack) -> None:
    """Summary, picture and report of a finished run."""
    stack.close()  # the live picture ends, files are complete
    run = made.folder
    summary = {
        "seconds": round(made.seconds, 1),
        "steps": made.done,
        "seed": config.seed,
        "model": without_home(config.model.path),
        "evaluation": evaluation_summary(run, made.evaluations),
    }
    RunFolder(run).write_summary(summary)
    finish_curves(run, wanted=config.log.curves)
    report(summary, samples(run), run)
