"""A run folder in use by this run: new or to go on with, with its log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from lightrft.config import Config, SFTConfig, check_backend
from lightrft.parallel.world import World
from lightrft.runs.folder import earlier, new_run
from lightrft.runs.layout import RunFolder
from lightrft.runs.log import Terminal, logging_to

log = logging.getLogger("lightrft")


@contextlib.contextmanager
def claimed(
    config: Config | SFTConfig, resume: Path | None, world: World, command: str
) -> Iterator[tuple[Path, bool, Terminal]]:
    """Inside, the run folder is in use. Gives the folder, whether to go on from its checkpoints, and its log's terminal."""
    check_backend(config.strategy, world.size)
    before = earlier(config, resume)
    run = before or resume
    if run is None:
        with world.independent():
            run = new_run(config, command) if world.is_first else None
        run = world.gather(run)[0]
        assert run is not None
    files = RunFolder(run)
    files.check_format()
    world.redirect_output(files.log, files.rank_logs)
    with logging_to(files.log if world.is_first else world.output(files.rank_logs)) as terminal:
        yield run, before is not None, terminal
