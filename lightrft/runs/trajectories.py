"""A step's responses as Parquet, a file for each rank: RUN/trajectories/step-000007.parquet. Those of runs begun before, as JSON lines,
are read too.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightrft.datasets import response_file
from lightrft.datasets.response_columns import DIGITS
from lightrft.media.parts import described, readable
from lightrft.runs.layout import RunFolder
from lightrft.runs.metrics import learned_from_given, read_metrics
from lightrft.runs.sheets import write_sheet

if TYPE_CHECKING:
    from lightrft.runs.media import MediaCopies
    from lightrft.types import Message, Prompt, Trajectory

RIGHT = EXACT, ORDERED = "exact", "ordered"
"""Parts of a held-out response that tell whether the model is right (1) of it: it says the same, or orders the prompt's responses so."""
JSON_TO_PACKED = 8
"""How many times smaller a response is as it is saved now than as a line of JSON."""


def save(
    run: Path,
    step: int,
    trajectories: Sequence[Trajectory],
    *,
    rank: int = 0,
    pieces: Callable[[Sequence[int]], list[str]] | None = None,
    columns: bool = True,
    media: MediaCopies | None = None,
) -> Path:
    """Writes one step's responses of a rank, replacing an earlier file of that step, and returns the file.

    `pieces` turns token ids into one text each, for viewers; `columns` adds what is known of each token:
    ids, mask, behavior (log-prob at sampling), Trajectory.columns, and of those learned from new, entropy and weight. `media` copies
    what prompts show; without it they are saved by their paths.
    """
    path = RunFolder(run).responses(step, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = write_sheet([t.made for t in trajectories], path.with_suffix(".png"))
    shown = {} if media is None else _shown({id(t.prompt): t.prompt for t in trajectories}, media)
    rows = [
        _row(step, trajectory)
        | shown.get(id(trajectory.prompt), {})
        | ({"made": told} if told else {})
        | (_tokens(trajectory, pieces) if columns else {})
        for trajectory, told in zip(trajectories, made, strict=True)
    ]
    for row, trajectory in zip(rows, trajectories, strict=True) if columns else ():
        for saved, fork in zip(row.get("forks", ()), trajectory.forks, strict=True):
            saved["tokens"] = {name: _plain(x) for name, x in _tokens(fork, pieces)["tokens"].items()}
    unfinished = path.with_name(f".tmp-{path.name}")  # utils/atomic.py: recover
    with unfinished.open("wb") as file:
        response_file.write(file, rows)
    os.replace(unfinished, path)
    RunFolder(run).old_responses(step, rank).unlink(missing_ok=True)
    return path


def _shown(prompts: dict[int, Prompt], media: MediaCopies) -> dict[int, dict[str, Any]]:
    """The messages of prompts with the copies of their media, each prompt read once for all its responses."""
    return {number: {"messages": media.kept(prompt.messages)} for number, prompt in prompts.items()}


def sample(trajectories: Sequence[Trajectory], groups: int) -> list[dict[str, Any]]:
    """The responses of the first groups, each as one flat row for a table of another program."""
    from lightrft.runs.media import (
        base_name,
    )  # with numpy and the decoders, which a viewer of text does not need

    first = list(dict.fromkeys(t.group for t in trajectories))[:groups]
    return [
        {
            "group": t.group,
            "prompt": readable(t.prompt.messages[-1]["content"], base_name) if t.prompt.messages else "",
            "response": t.answer,
            "target": "" if t.prompt.target is None else str(t.prompt.target),
            "reward": _finite(t.reward),
            "finish": t.finish,
        }
        for t in trajectories
        if t.group in first
    ]


def load(run: Path, step: int, *, tokens: bool = True) -> list[dict[str, Any]]:
    """The saved responses of a step, rank by rank: those trained on in their order, then those that were not.

    `tokens`: with the columns of their tokens. ValueError naming the steps that are there.
    """
    return [row for file in _files(run, step) for row in _read(file, None, tokens)]


def load_one(run: Path, step: int, place: int) -> dict[str, Any]:
    """The saved response at this place of a step, without reading more than the responses beside it. ValueError for a step or place that
    is not there."""
    seen = 0
    for path in _files(run, step):
        count = _count(path)
        if place < seen + count:
            return _read(path, [place - seen], True)[0]
        seen += count
    raise ValueError(f"no response {place} in step {step}: its places are 0 to {seen - 1}.")


def load_some(run: Path, step: int, most: int) -> list[dict[str, Any]]:
    """At most so many of the responses of a step that a model wrote, without their tokens, evenly spaced over all ranks. ValueError as from
    `load`."""
    files = _files(run, step)
    places = [
        (file, place)
        for file in files
        for place, row in enumerate(_index(file))
        if row.get("origin") != "given"
    ]
    chosen = places[:: max(1, math.ceil(len(places) / most))]
    return [
        row for file in files for row in _read(file, [place for one, place in chosen if one == file], False)
    ]


def index(run: Path, step: int) -> list[dict[str, Any]]:
    """What the files of a step say of its responses without being read: rank, place in the step, group, use, origin, finish, length,
    reward. ValueError as from `load`."""
    found = [{**row, "rank": RunFolder.rank_of(file)} for file in _files(run, step) for row in _index(file)]
    return [{**row, "step": step, "place": place} for place, row in enumerate(found)]


def packed_size(run: Path, step: int) -> int:
    """Bytes of the saved responses of a step, those of JSON lines as if they were saved now."""
    return sum(
        file.stat().st_size // (1 if file.suffix == response_file.SUFFIX else JSON_TO_PACKED)
        for file in RunFolder(run).all_responses(step)
    )


def _files(run: Path, step: int) -> list[Path]:
    files = RunFolder(run).all_responses(step)
    if not files:
        there = RunFolder(run).saved_steps
        option = "held_out_prompts" if learned_from_given(read_metrics(run)) else "trajectories_every_steps"
        known = f"saved steps: {_ranges(there)}" if there else f"none are saved: set log.{option} above 0"
        raise ValueError(f"no responses of step {step} in {run}; {known}.")
    return files


def _read(path: Path, places: Sequence[int] | None, tokens: bool) -> list[dict[str, Any]]:
    """The responses of a file at these places, or all."""
    if path.suffix == response_file.SUFFIX:
        rows = response_file.read(path, places, tokens=tokens)
    else:
        lines = _lines(path)
        wanted = lines if places is None else [lines[place] for place in places]
        rows = [_parsed(path, number, line) for number, line in wanted]
    for row in rows:
        for one in row.get("made", {}).values():
            one["file"] = str(path.with_name(Path(one["file"]).name))
    return rows


def _index(path: Path) -> list[dict[str, Any]]:
    """What is known of each response of a file by its place; of JSON lines everything."""
    if path.suffix == response_file.SUFFIX:
        return response_file.index(path)
    return [
        {name: row.get(name) for name in response_file.INDEXED if name != "place"}
        for row in _read(path, None, False)
    ]


def _count(path: Path) -> int:
    """How many responses a file holds."""
    return len(response_file.index(path)) if path.suffix == response_file.SUFFIX else len(_lines(path))


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not empty, and their numbers."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line]


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}:{number}: the line is broken ({error}).") from None
    if not isinstance(row, dict) or "group" not in row:
        raise ValueError(f"{path}:{number}: the line holds no response.")
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
        found = {"said": trajectory.said, "step_rewards": rewards, **_forks(trajectory)}
    return found | ({"failed": trajectory.failed} if trajectory.failed else {})


def _forks(trajectory: Trajectory) -> dict[str, Any]:
    """The further rows of a conversation: how many messages each shares with an earlier one, and what was said behind those."""
    found, before = list[dict[str, Any]](), [trajectory.said]
    for fork in trajectory.forks:
        shared = max(_in_common(fork.said, said) for said in before)
        found.append({"shared": shared, "said": fork.said[shared:]})
        before.append(fork.said)
    return {"forks": found} if found else {}


def spoken(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a saved response, for people: its messages, then those of each fork behind a line that says where it begins."""
    messages = list(row.get("said") or ())
    for number, fork in enumerate(row.get("forks", ()), start=1):
        where = f"behind {fork['shared']} messages" if fork["shared"] else "behind the prompt"
        messages += [{"role": f"fork {number}", "content": where}, *fork["said"]]
    return messages


def _in_common(a: Sequence[Message], b: Sequence[Message]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _plain(values: Any) -> list[Any]:
    """A column of tokens as JSON has it."""
    return [
        round(x, DIGITS) if isinstance(x, float) else x for x in getattr(values, "tolist", lambda: values)()
    ]


def _tokens(trajectory: Trajectory, pieces: Callable[[Sequence[int]], list[str]] | None) -> dict[str, Any]:
    """Per-token lists and arrays, each (L,)."""
    tokens: dict[str, Any] = {
        "ids": trajectory.token_ids,
        "mask": trajectory.mask,
    }
    if trajectory.origin != "given":
        tokens["behavior"] = trajectory.behavior
    tokens |= {name: column.numpy() for name, column in (trajectory.learned | trajectory.columns).items()}
    if pieces is not None:
        tokens["pieces"] = pieces(trajectory.token_ids)
    return {"tokens": tokens}


def _finite(value: float) -> float | None:
    return round(float(value), DIGITS) if math.isfinite(value) else None


def _ranges(numbers: Sequence[int]) -> str:
    """1-4, 6, 8-9"""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
