"""Run folders: a new one, one to go on with, and the settings in it."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from lightrft.config import Config, SFTConfig, layers
from lightrft.runs.layout import RunFolder
from lightrft.utils.atomic import write_text

log = logging.getLogger("lightrft")
NEW_RUN = "LIGHTRFT_NEW_RUN"
"""Environment variable: set by our launcher for the processes of a run whose folder holds nothing but its settings yet."""


def new_run(config: Config | SFTConfig, command: str = "train") -> Path:
    """A new run folder with the resolved config in it; not its own place, so that the file can be run again."""
    run = Path(config.run or f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()
    if RunFolder(run).has_steps:
        raise ValueError(
            f"run={run}: there is a run already. Go on with `lightrft {command} --resume {run}`, or set run to a new folder."
        )
    RunFolder(run).write_format()
    write_text(RunFolder(run).config, layers.to_yaml(replace(config, run="")))
    return run


def evaluation_folder(config: Config) -> Path:
    """Where `lightrft evaluate` writes."""
    return Path(config.run or f"runs/evaluate-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()


def keep_settings(run: Path, config: Config | SFTConfig, done: int) -> None:
    """The settings a run goes on with become its config.yaml; those of its first `done` steps are kept beside it."""
    file = RunFolder(run).config
    before, now = file.read_text(encoding="utf-8"), layers.to_yaml(replace(config, run=""))
    if before != now:
        write_text(RunFolder(run).config_until(done), before)
        write_text(file, now)
        log.info(
            "settings changed after step %d; those before are in %s",
            done,
            RunFolder(run).config_until(done).name,
        )


def earlier(config: Config | SFTConfig, resume: Path | None) -> Path | None:
    """The run folder to go on with: that of --resume, or that of the processes which a launcher starts again; else None.

    ValueError if a launcher other than ours may start processes again and the run has no folder that they would find.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if resume is not None:
        return resume if restarted or NEW_RUN not in os.environ else None
    if not config.run and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise ValueError(
            "the launcher may start the processes again (--max-restarts), and they must find the run: set --run runs/NAME."
        )
    run = Path(config.run).expanduser()
    return run if restarted and RunFolder(run).is_run else None
