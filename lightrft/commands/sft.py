"""`lightrft sft`."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from lightrft.build.sft import build_trainer
from lightrft.commands.claim import claimed
from lightrft.config import SFTConfig
from lightrft.console.progress import report_losses
from lightrft.parallel.world import World
from lightrft.runs.curves import draw_curves
from lightrft.runs.folder import keep_settings
from lightrft.trainer.sft import SFTTrainer
from lightrft.utils.atomic import explained, write_text
from lightrft.utils.device import pick_device


def train(config: SFTConfig, resume: Path | None = None) -> Path:
    """Runs or goes on with supervised fine-tuning and returns its folder. Errors in settings come before any weight loads.

    Raises Stopped, after saving, if SIGTERM or Ctrl-C came.
    """
    started = time.perf_counter()
    with (
        World.joined(pick_device(config.strategy.device), config.strategy.timeout_seconds) as world,
        claimed(config, resume, world, "sft") as (run, again, terminal),
        contextlib.ExitStack() as stack,
    ):
        trainer = build_trainer(config, run, stack, started=started, resume=again)
        terminal.show = trainer.progress.note
        if again and world.is_first:
            keep_settings(run, config, trainer.done)
        trainer.train()
        if world.is_first:
            with explained(run):
                finish(trainer, stack)
    return run


def finish(trainer: SFTTrainer, stack: contextlib.ExitStack) -> None:
    """Summary, picture and report of a finished run."""
    stack.close()  # the live picture ends, files are complete
    run, config = trainer.run, trainer.config
    summary = {
        "seconds": round(trainer.seconds, 1),
        "steps": trainer.done,
        "seed": config.seed,
        "model": config.model.path,
        "held_out_nll": {k: v["mean"] for k, v in trainer.losses.items() if k in ("before", "after")},
        "held_out_nll_by_task": {k: v for k, v in trainer.losses.items() if k in ("before", "after")},
    }
    write_text(run / "summary.json", json.dumps(summary, indent=2))
    draw_curves(run)
    report_losses(summary, run)
