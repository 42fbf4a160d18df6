"""`lightrft dpo`."""

from __future__ import annotations

from pathlib import Path

from lightrft.build.dpo import build_run
from lightrft.commands import offline
from lightrft.commands.reward import measured
from lightrft.config import DPOConfig
from lightrft.console.progress import report_preferences


def train(config: DPOConfig, resume: Path | None = None) -> Path:
    """Runs or goes on with learning preferences and returns its folder, see commands/offline.py."""
    return offline.train(config, resume, build_run, measured, report_preferences)
