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
from lightrft.runs.trajectories import packed_size
from lightrft.utils.atomic import write_text
from lightrft.utils.shown import shown

MIB = 2**20
MOST_REFUSED = 5
"""Answers of a kind that found no room before the others of the kind are not tried any more."""
MOST_READ = 2
"""Bytes of saved responses that are read for each byte of room, so that a run of any length is exported in a minute."""
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
    pictures: list[tuple[str, int]] = []
    for when in run.evaluations:
        told = answers.evaluation(run, when)
        if budget.add(f"{number}/evaluation/{when}", told):
            pictures += [(when, row["place"]) for row in told["responses"] if row["has_pictures"]]
        else:
            left_out.evaluations.append(when)
    inside: list[int] = []
    known, readable = 0, MOST_READ * budget.left
    for step in _spread(run.steps):
        readable -= packed_size(run.folder, step)
        if len(left_out.steps) >= MOST_REFUSED or (readable < 0 and inside):
            left_out.steps.append(step)
            continue
        rows = answers.groups(run, step)
        if not budget.add(f"{number}/groups/{step}", rows):
            left_out.steps.append(step)
            continue
        inside.append(step)
        responses = [row for group in rows["groups"] for row in group["responses"]]
        pictures += [(str(step), row["place"]) for row in responses if row["has_pictures"]]
        known += sum(row["has_tokens"] for row in responses)
    left_out.steps.sort()
    for where, place in pictures:
        path = f"{number}/pictures/{where}/{place}"
        is_full = left_out.pictures >= MOST_REFUSED
        left_out.pictures += is_full or not budget.add(path, answers.pictures(run, where, place))
    left_out.tokens = known - _tokens(budget, number, run, inside)
    return left_out


def _tokens(budget: Budget, number: int, run: Run, steps: Sequence[int]) -> int:
    """Adds the tokens of responses, a path for each step, as many as there is room for, and returns how many.

    Responses are packed one by one to know their size; those of a step together are smaller. Steps are read until there is twice as
    much as fits, so that a run of any length is exported in about the same time.
    """
    sizes: list[tuple[int, int, int, int]] = []
    for step in steps:
        if sum(size for *_, size in sizes) > 2 * budget.left:
            break
        for rank, row in _ranked(run, step):
            packed = gzip.compress(answers.encoded(_columns(row)), 6)
            sizes.append((rank, step, row["place"], len(packed) * 4 // 3))
    chosen: dict[int, set[int]] = {}
    room = budget.left
    for _, step, place, size in sorted(sizes):
        if size <= room:
            room -= size
            chosen.setdefault(step, set()).add(place)
    kept = 0
    for step, places in chosen.items():
        rows = {str(row["place"]): _columns(row) for row in run.responses(step) if row["place"] in places}
        kept += len(rows) if budget.add(f"{number}/tokens/{step}", rows) else 0
    return kept


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    return {"columns": token_columns(row)}


def _ranked(run: Run, step: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """The responses of a step that have tokens, each with its place in the order of what is looked at most."""
    rows = [row for row in run.responses(step) if answers.has_tokens(row)]
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
