"""`lightrft view RUN --export FILE`: runs as one file, to be opened without a network, and to be passed on."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightrft.console.web import answers, page
from lightrft.runs.reader import Run, token_columns
from lightrft.utils.atomic import write_text
from lightrft.utils.shown import shown

MIB = 2**20
ROOM_FOR_WORDS = 2048
"""Bytes kept for the sentences about what is left out."""


@dataclass
class Budget:
    """Answers that are in the file, and the bytes that are left for more."""

    left: int
    saved: dict[str, str] = field(default_factory=dict)
    """The answer to a path: gzip, in base64."""

    def add(self, path: str, found: Any, *, needed: bool = False) -> bool:
        """Puts an answer into the file if there is room for it, or if the page is nothing without it; whether it is in."""
        packed = base64.b64encode(gzip.compress(answers.encoded(found), 9, mtime=0)).decode("ascii")
        size = len(packed) + len(path) + 8
        if size > self.left and not needed:
            return False
        self.left -= size
        self.saved[path] = packed
        return True


@dataclass
class LeftOut:
    """What a run has and its file has not."""

    steps: list[int] = field(default_factory=list)
    """Steps whose responses are not in it."""
    evaluations: list[str] = field(default_factory=list)
    tokens: int = 0
    """Responses without their tokens."""
    pictures: int = 0
    """Responses without their pictures."""

    def sentence(self) -> str:
        """What is left out, in words; empty if nothing is."""
        told = [
            f"the responses of {len(self.steps)} steps ({_few(self.steps)})" if self.steps else "",
            f"evaluation {', '.join(self.evaluations)}" if self.evaluations else "",
            f"the tokens of {self.tokens} responses" if self.tokens else "",
            f"the pictures of {self.pictures} responses" if self.pictures else "",
        ]
        return "; ".join(one for one in told if one)


def export(runs: Sequence[Run], file: Path, mib: float) -> list[str]:
    """Writes the file, of at most so many MiB (more only if the metrics alone need it), and returns what it left out of each run.

    Metrics come first, then evaluations, the groups of the last, the first and the other steps, then pictures, and the tokens of the
    best and worst responses, of those with the largest advantages, and of all others.
    """
    if not mib > 0:
        raise ValueError(f"--export-mib {mib}: needs a size above 0. Set --export-mib 20.")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise ValueError(
            f"--export {file}: needs the name of a file in a folder that is there, e.g. run.html."
        )
    budget = Budget(int(mib * MIB) - len(page.alone("", "").encode()))
    budget.add("runs", answers.answer(runs, "runs"), needed=True)
    for n, run in enumerate(runs):
        budget.add(f"{n}/overview", answers.overview(run), needed=True)
    share = (budget.left - ROOM_FOR_WORDS) // len(runs)
    told = []
    for n, run in enumerate(runs):
        own = Budget(share, budget.saved)
        told.append(_fill(own, n, run).sentence())
    budget.add("left_out", told, needed=True)
    title = " and ".join(run.folder.name for run in runs)
    saved = json.dumps(budget.saved, separators=(",", ":")).replace("<", "\\u003c")
    write_text(file, page.alone(shown(title, lines=False), saved))
    return told


def _fill(budget: Budget, number: int, run: Run) -> LeftOut:
    left_out = LeftOut()
    for when in run.evaluations:
        if not budget.add(f"{number}/evaluation/{when}", answers.evaluation(run, when)):
            left_out.evaluations.append(when)
    inside: list[int] = []
    for step in _spread(run.steps):
        told = answers.groups(run, step)
        (inside if budget.add(f"{number}/groups/{step}", told) else left_out.steps).append(step)
    left_out.steps.sort()
    for step in inside:
        left_out.pictures += _pictures(budget, number, run, str(step), answers.groups(run, step)["groups"])
    for when in set(run.evaluations) - set(left_out.evaluations):
        left_out.pictures += _pictures(budget, number, run, when, [answers.evaluation(run, when)])
    left_out.tokens = _tokens(budget, number, run, sorted(inside))
    return left_out


def _pictures(budget: Budget, number: int, run: Run, where: str, groups: Sequence[Any]) -> int:
    """Adds the pictures of some responses, and counts those that are left out."""
    places = [row["place"] for group in groups for row in group["responses"] if row["has_pictures"]]
    paths = [(f"{number}/pictures/{where}/{place}", place) for place in places]
    return sum(not budget.add(path, answers.pictures(run, where, place)) for path, place in paths)


def _tokens(budget: Budget, number: int, run: Run, steps: Sequence[int]) -> int:
    """Adds the tokens of responses, a path for each step; as many responses as there is room for, and counts the others.

    Responses are packed one by one to know their size; those of a step together are smaller.
    """
    sizes: list[tuple[int, int, int, int]] = []
    for step in steps:
        for rank, row in _ranked(run, step):
            found = answers.encoded(_columns(row))
            sizes.append((rank, step, row["place"], len(gzip.compress(found, 6)) * 4 // 3))
    chosen: dict[int, set[int]] = {}
    room, left = budget.left, 0
    for _, step, place, size in sorted(sizes):
        if size > room:
            left += 1
            continue
        room -= size
        chosen.setdefault(step, set()).add(place)
    for step, places in chosen.items():
        rows = {str(row["place"]): _columns(row) for row in run.responses(step) if row["place"] in places}
        left += 0 if budget.add(f"{number}/tokens/{step}", rows) else len(rows)
    return left


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    return {"columns": token_columns(row)}


def _ranked(run: Run, step: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The responses of a step that have tokens, each with its place in the order of what is looked at most."""
    rows = [row for row in run.responses(step) if "tokens" in row]
    known = sorted((row for row in rows if row["reward"] is not None), key=lambda row: row["reward"])
    strong = sorted(rows, key=lambda row: -_largest(row))
    first = [row["place"] for row in (*known[:2], *known[-2:], *strong[:2])]
    for row in rows:
        is_odd = row["finish"] != "stop" or row.get("use") not in ("trained", None)
        yield 0 if row["place"] in first else 1 if is_odd else 2, row


def _largest(row: dict[str, Any]) -> float:
    values = [abs(value) for value in row["tokens"].get("advantages") or () if value is not None]
    return max(values, default=-math.inf)


def _spread(steps: Sequence[int]) -> list[int]:
    """Steps so that any number of the first of them covers the run: the last, the first, then those halfway."""
    order, spans = [], [(0, len(steps) - 1)]
    if steps:
        order = [len(steps) - 1, 0]
    while spans:
        low, high = spans.pop(0)
        middle = (low + high) // 2
        order.append(middle)
        spans += [(a, b) for a, b in ((low, middle - 1), (middle + 1, high)) if a <= b]
    return [steps[n] for n in dict.fromkeys(order)] if steps else []


def _few(numbers: Sequence[int]) -> str:
    shown_ones = ", ".join(map(str, numbers[:5]))
    return shown_ones + (", ..." if len(numbers) > 5 else "")
