"""Responses that a run has saved (runs/trajectories.py), a row for each group of them: to compare, or to learn the best of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightrft.utils.paths import expanded

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[tuple[str, Row]]]
"""Gives the located rows of one file."""
FILE = re.compile(r"step-(\d+)(?:\.rank-(\d+))?\.(?:jsonl|parquet)")
STEPS = re.compile(r"(\d+)(-(\d*))?")
WHOLE = ("", "train", "test")
"""Values of tasks.train_split and tasks.evaluate_split that name no steps: the defaults, which are meant for the hub."""


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
    """
    for step in chosen_steps(place, folder, split):
        groups: dict[tuple[Any, Any], Row] = {}
        for file in _files(folder, step):
            for where, saved in rows(file):
                try:
                    _add(groups, saved)
                except (KeyError, TypeError, ValueError) as error:
                    bad(f"{where}: no response that a run has saved ({type(error).__name__}: {error})")
        for (prompt, _), row in groups.items():
            yield f"step {step}, {prompt}", row


def _files(folder: Path, step: int) -> list[Path]:
    """The files of a step by rank; of a rank that has two, the one that this version writes."""
    found = {}
    for file in sorted(folder.iterdir()):  # .parquet after .jsonl
        if (name := FILE.fullmatch(file.name)) and int(name[1]) == step:
            found[int(name[2] or 0)] = file
    return [found[rank] for rank in sorted(found)]


def _add(groups: dict[tuple[Any, Any], Row], saved: Row) -> None:
    if saved["origin"] != "sampled" or saved["finish"] != "stop" or saved["reward"] is None:
        return
    if saved.get("use") == "held_out":
        return
    if not saved["response"].strip():
        return
    if any(
        isinstance(turn["content"], list) and any(part["type"] != "text" for part in turn["content"])
        for turn in saved["messages"]
    ):
        raise ValueError("responses to pictures, clips and sounds are not read, which a run does not keep")
    if saved.get("said"):
        raise ValueError(
            "conversations of several turns are not read: the tools that were offered are not among their messages"
        )
    row = groups.setdefault(
        (saved["prompt_id"], saved["group"]),
        {"prompt": saved["messages"], "target": saved["target"], "responses": [], "grades": []},
    )
    row["responses"].append(saved["response"])
    row["grades"].append(saved["reward"])
