"""From the words behind a layered command to its settings: short flags, layers, a run to go on with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lightrft.cli import help as helping
from lightrft.config import RUNS, Config, layers
from lightrft.runs.layout import RunFolder, newest_runs
from lightrft.utils.paths import expanded

C = TypeVar("C")


def load(command: str, args: Sequence[str]) -> Config:
    """The Config of a layered command."""
    return load_as(Config, command, args)


def load_as(cls: type[C], command: str, args: Sequence[str]) -> C:
    """The settings of a layered command, named after its layers unless it names itself.

    SystemExit after help was asked for and printed.
    """
    args = expand(args)
    helping.show_if_asked(command, cls, args)
    words, flags = layers.split(args)
    refuse_folders_of_runs(words)
    name = "-".join(layer for layer in words if layer in layers.shipped())
    try:
        loaded: Any = layers.load([*words, *flags], cls, prog=f"lightrft {command}")
    except ValueError:
        refuse_others(words, cls)  # says more than that a layer has no such option
        raise
    for told in layers.undone(words, cls):
        print(f"lightrft: {told}", file=sys.stderr)
    named: C = loaded if loaded.name != "run" or not name else replace(loaded, name=name)
    return named


def load_run(cls: type[C], command: str, resumed: str, args: Sequence[str]) -> tuple[C, Path | None]:
    """The settings of a new run, or of the one that is to go on, and then its folder."""
    if not resumed:
        return load_as(cls, command, args), None
    run = run_folder(resumed)
    return load_as(cls, command, [str(RunFolder(run).config), *args]), run


def refuse_folders_of_runs(words: Sequence[str]) -> None:
    """ValueError for a layer that is the folder of a run, which is meant either to go on or to be taken again."""
    for word in (word for word in words if word not in layers.shipped()):
        files = RunFolder(expanded(word, "layer"))
        if files.is_run and files.has_steps:
            raise ValueError(
                f"layer '{word}' is the folder of a run. {files.config} is the same run anew; --resume {word} goes on with this one."
            )


def refuse_others(words: Sequence[str], cls: type[Any]) -> None:
    """ValueError for a layer that is made for another kind of training."""
    for word in words:
        file = Path(word)
        belongs = [name for name, other in RUNS.items() if layers.fits(file, other)]
        if belongs and not layers.fits(file, cls):
            raise ValueError(
                f"'{word}' holds settings of `lightrft {belongs[0]}` that mean nothing here. Take another layer, or that command."
            )


def expand(args: Sequence[str]) -> list[str]:
    """Short flags written out: --model X is --model.path X, --capture-steps 3,7 is --log.capture-steps 3 7."""
    short = helping.SHORT_FLAGS
    expanded: list[str] = []
    for arg in args:
        flag, equals, value = arg.partition("=")
        if flag in short or flag == "--help":
            expanded += [short.get(flag, flag), *([value] if equals else [])]
        else:
            expanded.append(arg)
        if len(expanded) > 1 and expanded[-2] == short["--capture-steps"]:
            expanded[-1:] = expanded[-1].split(",")
    return expanded


def run_folder(name: str) -> Path:
    """The run folder called so. ValueError if it is none, naming the newest runs beside it, or of another format."""
    run = expanded(name, "RUN")
    if RunFolder(run).is_run:
        RunFolder(run).check_format()
        return run
    beside = newest_runs(run.parent)
    newest = f" Newest runs there: {', '.join(map(str, beside[:3]))}." if beside else ""
    raise ValueError(f"'{name}' is not a run folder: {RunFolder(run).config} does not exist.{newest}")
