"""Trajectories as few large tensors and plain values, for capsules and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from lightrft.media.parts import described
from lightrft.media.sources import label
from lightrft.types import Prompt, Trajectory
from lightrft.utils.paths import with_home, without_home
from lightrft.utils.states import plain

_FLAT = {"token_ids": torch.int64, "mask": torch.bool, "behavior": torch.float64}
"""Per-token lists of a Trajectory, laid end to end; float64 is what a Python float is."""
_PASSING = {"origin", "use", "learned"}
"""What the present step says of a Trajectory; the next one says it anew."""


def stored(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """What `restored` makes the same trajectories from. Responses to one prompt go on sharing it."""
    forks = [len(t.forks) for t in trajectories]
    trajectories = [row for t in trajectories for row in (t, *t.forks)]
    prompts = {id(t.prompt): t.prompt for t in trajectories}
    places = {key: place for place, key in enumerate(prompts)}
    apart = {"prompt", "columns", "forks", *_FLAT, *_PASSING}
    columns: dict[str, tuple[list[int], list[Tensor]]] = {}
    for place, t in enumerate(trajectories):
        for name, values in t.columns.items():
            members, parts = columns.setdefault(name, ([], []))
            members.append(place)
            parts.append(values)
    flat = {name: [x for t in trajectories for x in getattr(t, name)] for name in _FLAT}
    return {
        "prompts": [_prompt(prompt) for prompt in prompts.values()],
        "prompt_of": [places[id(t.prompt)] for t in trajectories],
        "lengths": [len(t) for t in trajectories],
        "forks": forks,
        "flat": {name: torch.tensor(values, dtype=_FLAT[name]) for name, values in flat.items()},
        "columns": {name: (members, torch.cat(parts)) for name, (members, parts) in columns.items()},
        "rest": [
            {f.name: getattr(t, f.name) for f in fields(Trajectory) if f.name not in apart}
            for t in trajectories
        ],
    }


def _prompt(prompt: Prompt) -> dict[str, Any]:
    """What a checkpoint holds of a prompt: media that were read stay, their sources by name only; fields of the row do not.

    A target that holds objects of a task's own is kept as text: no update reads it.
    """
    content = {f.name: getattr(prompt, f.name) for f in fields(Prompt)}
    content |= {"media": dict(prompt.media), "messages": described(prompt.messages, _kept), "columns": {}}
    if prompt.row is not None:
        content["row"] = described(prompt.row, _kept)
    try:
        plain(content["target"])
    except ValueError:
        content["target"] = repr(content["target"])
    return content


def _kept(source: Any) -> str:
    """What a source is called in a file: its path begins with ~ below the home folder."""
    return without_home(label(source))


def _found(prompt: Prompt) -> Prompt:
    """A prompt out of a file, with whole paths again: rewards open what they are told."""
    messages: Any = described(prompt.messages, with_home)
    row: Any = None if prompt.row is None else described(prompt.row, with_home)
    return replace(prompt, messages=messages, row=row)


def restored(
    packed: dict[str, Any], completed: Callable[[Sequence[Prompt]], list[Prompt]] = list
) -> list[Trajectory]:
    """The trajectories that `stored` was given; `completed` may give prompts back what was not stored of them."""
    prompts = completed([_found(Prompt(**content)) for content in packed["prompts"]])
    lengths = packed["lengths"]
    lists = {
        name: [part.tolist() for part in values.split(lengths)] for name, values in packed["flat"].items()
    }
    trajectories = [
        Trajectory(prompt=prompts[prompt], **{name: parts[i] for name, parts in lists.items()}, **rest)
        for i, (prompt, rest) in enumerate(zip(packed["prompt_of"], packed["rest"], strict=True))
    ]
    for name, (members, values) in packed["columns"].items():
        for place, part in zip(members, values.split([lengths[m] for m in members]), strict=True):
            trajectories[place].columns[name] = part
    rows, found = iter(trajectories), list[Trajectory]()
    for forks in packed.get("forks", [0] * len(trajectories)):  # an earlier version had none
        t = next(rows)
        t.forks = [next(rows) for _ in range(forks)]
        found.append(t)
    return found
