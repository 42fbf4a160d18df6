"""`lightrft sft`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightrft.build.sft import build_run
from lightrft.commands import offline
from lightrft.config import ModelConfig, SFTConfig
from lightrft.console.progress import report_losses
from lightrft.models.describe import is_pipeline


def train(config: SFTConfig, resume: Path | None = None) -> Path:
    """Runs or goes on with supervised fine-tuning and returns its folder, see commands/offline.py."""
    name = next(name for holds, name in MEASURES if holds(config.model))
    return offline.train(config, resume, build_run, partial(measured, name), report_losses)


MEASURES: tuple[tuple[Callable[[ModelConfig], bool], str], ...] = (
    (is_pipeline, "held_out_error"),
    (lambda _: True, "held_out_nll"),
)
"""Whether a model is of a kind -> what is measured of it on held-out data; the first row that holds a model counts."""


def measured(name: str, evaluations: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The held-out losses, which are of this name."""
    return {
        name: {label: found["mean"] for label, found in evaluations.items()},
        f"{name}_by_task": evaluations,
    }
