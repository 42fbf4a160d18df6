"""`lightrft sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightrft.build.sft import build_run
from lightrft.commands import offline
from lightrft.config import SFTConfig
from lightrft.console.progress import report_losses


def train(config: SFTConfig, resume: Path | None = None) -> Path:
    """Runs or goes on with supervised fine-tuning and returns its folder, see commands/offline.py."""
    return offline.train(config, resume, build_run, measured, report_losses)


def measured(evaluations: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The held-out losses."""
    return {
        "held_out_nll": {label: found["mean"] for label, found in evaluations.items()},
        "held_out_nll_by_task": evaluations,
    }
