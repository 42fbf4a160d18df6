"""A run folder in use by this run: new or to go on with, with its log."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from lightrft.config import RunConfig, check_backend
from lightrft.config.layers import values
from lightrft.parallel.world import World
from lightrft.runs.folder import begun, earlier, taken_up
from lightrft.runs.layout import RunFolder
from lightrft.runs.log import Terminal, logging_to
from lightrft.utils.inline import PREFIX, missing

log = logging.getLogger("lightrft")
ARGUMENTS = {"tasks.train": "data", "tasks.evaluate": "evaluate", "rewards.functions": "rewards"}
"""Option -> the argument in Python that it comes from, where that has another name."""


@contextlib.contextmanager
def claimed(
    config: RunConfig, resume: Path | None, world: World, command: str
) -> Iterator[tuple[Path, bool, Terminal]]:
    """Inside, the run folder is in use, and by no other process. Gives the folder, whether to go on from its checkpoints, and its log's terminal."""
    check_backend(config.strategy, world.size)
    refuse_missing(config, resume, command)
    before = earlier(config, resume)
    there = before or resume
    with contextlib.ExitStack() as stack:
        with world.independent():
            run = None
            if world.is_first:
                again = before is not None
                mine = taken_up(there, command, again=again) if there else begun(config, command)
                run = stack.enter_context(mine)
        run = world.gather(run)[0]
        assert run is not None
        files = RunFolder(run)
        files.check_format()
        world.redirect_output(files.log, files.rank_logs)
        log_file = files.log if world.is_first else world.output(files.rank_logs)
        yield run, before is not None, stack.enter_context(logging_to(log_file))


def refuse_missing(config: RunConfig, resume: Path | None, command: str) -> None:
    """ValueError naming every object that a Python program gave to the run, and that this program does not hold."""
    lost: dict[str, list[str]] = {}
    for name, value in values(config).items():
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list | dict) else []
        plain = [text[text.find(PREFIX) :] for text in texts if isinstance(text, str) and PREFIX in text]
        if found := missing(plain):
            lost[name] = found
    if lost:
        told = "; ".join(f"{name} names {', '.join(found)}" for name, found in lost.items())
        given = ", ".join(f"{ARGUMENTS.get(name, name.partition('.')[0])}=..." for name in lost)
        again = f"resume={str(resume)!r}, " if resume else ""
        raise ValueError(
            f"{told}: given from Python by the program that began the run, and not here. Go on from Python with the same: "
            f"lightrft.{command}({again}{given})"
        )
