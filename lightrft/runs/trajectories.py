"""A step's responses as one JSON line each, a file for each rank: RUN/trajectories/step-000007.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightrft.media.parts import described, readable
from lightrft.runs.layout import RunFolder
from lightrft.runs.sheets import write_sheet

if TYPE_CHECKING:
    from lightrft.types import Trajectory

DIGITS = 5  # of saved log-probs and advantages: enough to read and to plot, a third of the size


def save(
    run: Path,
    step: int,
    trajectories: Sequence[Trajectory],
    *,
    rank: int = 0,
    pieces: Callable[[Sequence[int]], list[str]] | None = None,
    columns: bool = True,
) -> Path:
    """Writes one step's responses of a rank, replacing an earlier file of that step, and returns the file.

    `pieces` turns token ids into one text each, for viewers; `columns` adds what is known of each token:
    ids, mask, behavior (log-prob at sampling), Trajectory.columns, and of those learned from new, entropy and weight.
    """
    path = RunFolder(run).responses(step, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = write_sheet([t.made for t in trajectories], path.with_suffix(".png"))
    unfinished = path.with_name(f".tmp-{path.name}")  # utils/atomic.py: recover
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for trajectory, told in zip(trajectories, made, strict=True):
            row = (
                _row(step, trajectory)
                | ({"made": told} if told else {})
                | (_tokens(trajectory, pieces) if columns else {})
            )
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    os.replace(unfinished, path)
    return path


def sample(trajectories: Sequence[Trajectory], groups: int) -> list[dict[str, Any]]:
    """The responses of the first groups, each as one flat row for a table of another program."""
    first = list(dict.fromkeys(t.group for t in trajectories))[:groups]
    return [
        {
            "group": t.group,
            "prompt": readable(described(t.prompt.messages)[-1]["content"]) if t.prompt.messages else "",
            "response": t.answer,
            "target": "" if t.prompt.target is None else str(t.prompt.target),
            "reward": _finite(t.reward),
            "finish": t.finish,
        }
        for t in trajectories
        if t.group in first
    ]


def load(run: Path, step: int) -> list[dict[str, Any]]:
    """The saved responses of a step, rank by rank: those trained on in their order, then those that were not.

    ValueError naming the steps that are there.
    """
    return [row for file in _files(run, step) for row in _rows(file)]


def load_one(run: Path, step: int, place: int) -> dict[str, Any]:
    """The saved response at this place of a step, without parsing the others. ValueError for a step or place that is not there."""
    seen = 0
    for path in _files(run, step):
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line == "\n":
                    continue
                if seen == place:
                    return _parsed(path, number, line)
                seen += 1
    raise ValueError(f"no response {place} in step {step}: its places are 0 to {seen - 1}.")


def load_some(run: Path, step: int, most: int) -> list[dict[str, Any]]:
    """At most so many responses of a step, evenly spaced over all ranks; the others are not parsed. ValueError as from `load`."""
    lines = [
        (file, number, line)
        for file in _files(run, step)
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1)
        if line
    ]
    return [_parsed(*one) for one in lines[:: max(1, math.ceil(len(lines) / most))]]


def _files(run: Path, step: int) -> list[Path]:
    files = RunFolder(run).all_responses(step)
    if not files:
        there = RunFolder(run).saved_steps
        known = (
            f"saved steps: {_ranges(there)}"
            if there
            else "none are saved: set log.trajectories_every_steps above 0"
        )
        raise ValueError(f"no responses of step {step} in {run}; {known}.")
    return files


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [_parsed(path, number, line) for number, line in enumerate(lines, start=1) if line]


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: the line is broken ({error}).") from None
    if not isinstance(row, dict) or "group" not in row:
        raise ValueError(f"{path}:{number}: the line holds no response.")
    for one in row.get("made", {}).values():
        one["file"] = str(path.with_name(Path(one["file"]).name))
    return row


def _row(step: int, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": trajectory.prompt.id,
        "source": trajectory.prompt.source,
        "messages": described(trajectory.prompt.messages),
        "target": trajectory.prompt.target,
        "response": trajectory.answer,
        "length": trajectory.num_chosen,
        **conversation(trajectory),
        "finish": trajectory.finish,
        "reward": _finite(trajectory.reward),
        "parts": {name: _finite(value) for name, value in trajectory.parts.items()},
        "group": trajectory.group,
        "origin": trajectory.origin,
        "use": trajectory.use,
        "weight_version": trajectory.weight_version,
    }


def conversation(trajectory: Trajectory) -> dict[str, Any]:
    """What was said after the prompt and what the environment made of it; nothing of a response in one turn."""
    found: dict[str, Any] = {}
    if trajectory.said:
        rewards = [_finite(reward) for reward in trajectory.step_rewards]
        found = {"said": trajectory.said, "step_rewards": rewards}
    return found | ({"failed": trajectory.failed} if trajectory.failed else {})


def _tokens(trajectory: Trajectory, pieces: Callable[[Sequence[int]], list[str]] | None) -> dict[str, Any]:
    """Per-token lists, each (L,)."""
    tokens: dict[str, Any] = {
        "ids": trajectory.token_ids,
        "mask": trajectory.mask,
        "behavior": [_finite(value) for value in trajectory.behavior],
    }
    for name, column in (trajectory.learned | trajectory.columns).items():
        short = _significant if name == "weight" else _finite
        tokens[name] = [short(value) for value in column.tolist()]
    if pieces is not None:
        tokens["pieces"] = pieces(trajectory.token_ids)
    return {"tokens": tokens}


def _finite(value: float) -> float | None:
    return round(float(value), DIGITS) if math.isfinite(value) else None


def _significant(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _ranges(numbers: Sequence[int]) -> str:
    """1-4, 6, 8-9"""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
