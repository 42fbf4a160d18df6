"""Responses that a run has saved (runs/trajectories.py), a row for each group of them: to compare, or to learn the best of."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from lightrft.utils.paths import expanded

log = logging.getLogger("lightrft")

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[tuple[str, Row]]]
"""Gives the located rows of one file."""
FILE = re.compile(r"step-(\d+)(?:\.rank-(\d+))?\.(?:jsonl|parquet)")
SETTINGS = re.compile(r"config(?:-until-step-(\d+))?\.yaml")
"""Settings of the steps up to one, where a resume has changed them, and those of the steps after it."""
STEPS = re.compile(r"(\d+)(-(\d*))?")
WHOLE = ("", "train", "test")
"""Values of tasks.train_split and tasks.evaluate_split that name no steps: the defaults, which are meant for the hub."""


TOLD = ("", "mcp", "repair", "search")
"""Environments of which environment.announce says whether a prompt was told of the tools; others tell of theirs as they begin."""


class UnreadError(ValueError):
    """A response that a run has saved, and that is no row all the same."""


def rollouts_folder(place: str) -> Path | None:
    """The folder of saved responses that a place means, which is a run's folder or that one; None for any other place."""
    path = expanded(place, "data file")
    if not path.is_dir():
        return None
    inside = path / "trajectories"
    found = inside if inside.is_dir() else path
    return found if any(FILE.fullmatch(file.name) for file in found.iterdir()) else None


def chosen_steps(place: str, folder: Path, split: str) -> list[int]:
    """The saved steps that a split names: "1-8", "9-", "3", or all of them. ValueError if there is none."""
    saved = sorted({int(found[1]) for file in folder.iterdir() if (found := FILE.fullmatch(file.name))})
    if split in WHOLE:
        return saved
    found = STEPS.fullmatch(split)
    if not found:
        raise ValueError(
            f"{place} holds the responses of a run, and a split of it is steps, like 1-8, 9- or 3, not '{split}'."
        )
    first = int(found[1])
    last = first if found[2] is None else int(found[3]) if found[3] else saved[-1]
    chosen = [step for step in saved if first <= step <= last]
    if not chosen:
        raise ValueError(
            f"{place} has no saved responses of steps {split}; it has steps {saved[0]} to {saved[-1]}."
        )
    return chosen


def read_rollouts(
    place: str, folder: Path, split: str, rows: Reader, bad: Callable[[str], None]
) -> Iterator[tuple[str, Row]]:
    """A row for each group of finished responses, as the format `graded` reads it: `prompt`, `responses`, `grades` (their rewards), and
    the prompt's own `target`.

    A response that was cut off at the limit of tokens is left out, since a response in a row is a finished one; so is one without any
    text, one that the step took over from another step, where it stands too, one that has no reward, and one to a held-out prompt.
    How many of each is logged.
    """
    read, left_out = 0, Counter[str]()
    for step in chosen_steps(place, folder, split):
        groups: dict[tuple[Any, Any], Row] = {}
        spoken_with = _environment(folder, step)
        for file in _files(folder, step):
            for where, saved in rows(file):
                try:
                    if reason := _left_out(saved):
                        left_out[reason] += 1
                    else:
                        _add(groups, saved, spoken_with)
                        read += 1
                except UnreadError as error:
                    bad(f"{where}: {error}")
                except (KeyError, TypeError, ValueError) as error:
                    bad(f"{where}: no response that a run has saved ({type(error).__name__}: {error})")
        for (prompt, _), row in groups.items():
            yield f"step {step}, {prompt}", row
    if left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        log.info("%s: %d saved responses are read; left out: %s", place, read, counts)


def _files(folder: Path, step: int) -> list[Path]:
    """The files of a step by rank; of a rank that has two, the one that this version writes."""
    found = {}
    for file in sorted(folder.iterdir()):  # .parquet after .jsonl
        if (name := FILE.fullmatch(file.name)) and int(name[1]) == step:
            found[int(name[2] or 0)] = file
    return [found[rank] for rank in sorted(found)]


def _environment(folder: Path, step: int) -> str:
    """The setting by which the run told its policy of tools in this step; empty if there is none, or the messages hold them."""
    run = folder.parent if folder.name == "trajectories" else folder
    until = {
        float(named[1] or "inf"): file for file in run.iterdir() if (named := SETTINGS.fullmatch(file.name))
    }
    file = next((until[last] for last in sorted(until) if last >= step), None)
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8")) if file else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not readable as YAML ({error}).") from None
    options = settings.get("environment") if isinstance(settings, dict) else None
    options = options if isinstance(options, dict) else {}
    name, tools = options.get("name") or "", options.get("tools") or []
    if options.get("announce") is False and name in TOLD:
        return ""
    return f"environment.name={name}" if name else f"environment.tools={tools}" if tools else ""


def _left_out(saved: Row) -> str:
    """Why a saved response is in no row; empty for one that is in one."""
    if saved["origin"] != "sampled":
        return "taken over from another step"
    if saved["finish"] != "stop":
        return "cut off at the limit of tokens"
    if saved["reward"] is None:
        return "without a reward"
    if saved.get("use") == "held_out":
        return "to held-out prompts"
    return "" if saved["response"].strip() else "without text"


def _add(groups: dict[tuple[Any, Any], Row], saved: Row, spoken_with: str) -> None:
    if any(
        isinstance(turn["content"], list) and any(part["type"] != "text" for part in turn["content"])
        for turn in saved["messages"]
    ):
        raise UnreadError(
            "responses to pictures, clips and sounds are not read, which a run does not keep. Name a run of text."
        )
    if saved.get("said") or spoken_with:
        what = (
            "conversations of several turns"
            if saved.get("said")
            else f"responses of a run with {spoken_with}"
        )
        raise UnreadError(
            f"{what} are not read: the tools that were offered are not among their messages. Name steps of a run without "
            "an environment."
        )
    row = groups.setdefault(
        (saved["prompt_id"], saved["group"]),
        {"prompt": saved["messages"], "target": saved["target"], "responses": [], "grades": []},
    )
    row["responses"].append(saved["response"])
    row["grades"].append(saved["reward"])
