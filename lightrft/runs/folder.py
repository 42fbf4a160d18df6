"""Run folders: a new one, one to go on with, and the settings in it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from lightrft.config import Config, RunConfig, layers
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.lock import locked
from lightrft.utils.atomic import make_folder, recover, write_text
from lightrft.utils.paths import expanded, without_home

log = logging.getLogger("lightrft")
NEW_RUN = "LIGHTRFT_NEW_RUN"
"""Environment variable: set by our launcher for the processes of a run whose folder holds nothing but its settings yet, to what
RunFolder.settings_digest gave then."""


def new_run(config: RunConfig, command: str = "train") -> Path:
    """A new run folder for processes that are yet to start, see `begun`."""
    with begun(config, command) as run:
        return run


@contextmanager
def begun(config: RunConfig, command: str) -> Iterator[Path]:
    """A new run folder, locked inside, with the resolved config in it; not its own place, so that the file can be run again.

    ValueError if there is something in the folder already that this run would mix with or overwrite.
    """
    run = _made(config.run, config.name)
    with locked(run):
        check_new(run, command)
        files, text = RunFolder(run), settings_text(config)
        files.write_format(text)
        write_text(files.config, text)
        yield run


@contextmanager
def taken_up(run: Path, command: str, *, again: bool) -> Iterator[Path]:
    """The folder of a run that is there, locked inside. `again`: it is to go on, and what killed processes left is removed.

    ValueError if it is new, and not as the process left it that launched this one.
    """
    with locked(run):
        files = RunFolder(run)
        if again:
            for place in (run, files.evaluation, files.trajectories):
                recover(place)
        else:
            check_unused(run, command)
            if files.settings_digest != os.environ.get(NEW_RUN):
                raise ValueError(
                    f"run={run}: another process has written its settings there. Set run to a new folder."
                )
        yield run


def check_new(run: Path, command: str) -> None:
    """ValueError if a new run cannot begin in the folder: it would mix with something there, or overwrite it."""
    check_unused(run, command)
    files = RunFolder(run)
    if files.is_run and not files.settings_are_ours:
        raise ValueError(
            f"run={run}: {files.config} is there already, and was not written by a run, or was changed since. Set run to a "
            f"new folder; its settings are taken with: lightrft {command} {files.config}"
        )


def check_unused(run: Path, command: str) -> None:
    """ValueError if the folder holds a run that has begun, or an evaluation."""
    if RunFolder(run).has_steps:
        raise ValueError(
            f"run={run}: there is a run already. Go on with `lightrft {command} --resume {run}`, or set run to a new folder."
        )
    if EvaluationFolder(run).is_finished:
        raise ValueError(
            f"run={run}: there is an evaluation already ({EvaluationFolder(run).report('responses')}). Set run to a new folder."
        )


def evaluation_folder(config: Config) -> Path:
    """Where processes that are yet to start are to write an evaluation, see `evaluated_in`."""
    with evaluated_in(config) as run:
        return run


@contextmanager
def evaluated_in(config: Config) -> Iterator[Path]:
    """Where `lightrft evaluate` writes, locked inside: a new folder, or the one that is set.

    ValueError if a run or an evaluation is there.
    """
    run = _made(config.run, "evaluate")
    with locked(run):
        if RunFolder(run).is_run or RunFolder(run).has_steps:
            raise ValueError(
                f"run={run}: this is the folder of a training run, whose files an evaluation would mix with. Set run to a new folder."
            )
        check_unused(run, "evaluate")
        yield run


def settings_text(config: RunConfig) -> str:
    """The settings as config.yaml has them: without the run's own place, with models that are found from any folder, and with ~ for
    the home folder."""
    model = replace(
        config.model,
        path=_rooted(config.model.path),
        chat_template=_rooted(config.model.chat_template),
        lora=replace(config.model.lora, start=_rooted(config.model.lora.start)),
    )
    if not isinstance(config, Config):
        return layers.to_yaml(homeless(replace(config, run="", model=model)))
    teacher = replace(config.teacher, path=_rooted(config.teacher.path))
    critic = replace(config.critic, path=_rooted(config.critic.path))
    found = replace(config, run="", model=model, teacher=teacher, critic=critic)
    return layers.to_yaml(homeless(found))


WORDS = ("system", "instruction", "stop", "score_pattern")
"""Options that are read by models or as patterns: they stay as they are to the letter."""


def homeless(value: Any) -> Any:
    """Settings with ~ for the home folder in every text; whoever reads a path there writes it out again."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return replace(value, **{n: v if n in WORDS else homeless(v) for n, v in kept.items()})
    if isinstance(value, dict):
        return {_key_without_home(key): homeless(one) for key, one in value.items()}
    if isinstance(value, list):
        return [homeless(one) for one in value]
    return without_home(value) if isinstance(value, str) else value


def _key_without_home(key: str) -> str:
    """A key that may be a path, or a task's reward: TASK//whole/path.py:NAME, where TASK may be a path too."""
    task, both, path = key.partition("//")
    return f"{without_home(task)}/{without_home(f'/{path}')}" if task and both else without_home(key)


def _rooted(path: str) -> str:
    """The whole path of a file or folder that is here; any other name as it is."""
    prefix = "random:" if path.startswith("random:") else ""
    place = Path(path.removeprefix(prefix))
    here = path not in ("", prefix, "plain") and not place.is_absolute() and place.exists()
    return f"{prefix}{place.absolute()}" if here else path


def keep_settings(run: Path, config: RunConfig, done: int, steps: int) -> None:
    """The settings a run goes on with become its config.yaml; those of its first `done` steps are kept beside it.

    Where these are all its `steps`, only the number of steps is taken over: the others made nothing, and would be told as what made the
    model.
    """
    file = RunFolder(run).config
    before, now = file.read_text(encoding="utf-8"), settings_text(config)
    if done >= steps and _but_steps(before) != _but_steps(now):
        log.warning("no step is left to learn with other settings: %s stays as it was", file.name)
    elif before != now:
        write_text(RunFolder(run).config_until(done), before)
        write_text(file, now)
        log.info(
            "settings changed after step %d; those before are in %s",
            done,
            RunFolder(run).config_until(done).name,
        )


def _but_steps(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("steps:")]


def earlier(config: RunConfig, resume: Path | None) -> Path | None:
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
    run = expanded(config.run, "run")
    return run if restarted and RunFolder(run).is_run else None


def _made(run: str, name: str) -> Path:
    """The folder that is set, made if it is not there; a new one of this name and moment if none is set."""
    if run:
        folder = expanded(run, "run")
        make_folder(folder)
        return folder
    if name in ("", ".", "..") or "/" in name or os.sep in name:
        raise ValueError(
            f"name={name}: the name of a run is a part of its folder's name and cannot lead to another place. Set run={name} for the "
            "folder itself."
        )
    start = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in count(1):
        folder = Path("runs", start if number == 1 else f"{start}-{number}")
        make_folder(folder.parent)
        try:
            folder.mkdir()
        except FileExistsError:  # begun in the same second
            continue
        break
    return folder
