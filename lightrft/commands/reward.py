"""`lightrft reward`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightrft.build.reward import build_run
from lightrft.commands import offline
from lightrft.config import RewardTrainingConfig
from lightrft.console.progress import report_pairs


def train(config: RewardTrainingConfig, resume: Path | None = None) -> Path:
    """Runs or goes on with the training of a reward model and returns its folder, see commands/offline.py."""
    return offline.train(config, resume, build_run, measured, report_pairs)


def measured(evaluations: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Accuracy on the held-out pairs, and all that is known of them by task and output."""
    return {
        "pair_accuracy": {label: found["mean"] for label, found in evaluations.items() if "mean" in found},
        "pairs_by_task": evaluations,
    }
