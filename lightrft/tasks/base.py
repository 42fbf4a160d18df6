"""What a task is: where its data lies, how a row becomes a question, which reward judges the answers, and what a perfect
answer looks like. The built-in ones are in table.py and media_tasks.py.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightrft.config import TaskConfig
from lightrft.datasets.formats import FORMATS, Example, Format
from lightrft.datasets.judging import Verdict
from lightrft.datasets.shards import base_of, is_there
from lightrft.datasets.sources import BadRecords, Row, is_local, read
from lightrft.media.parts import located, outside
from lightrft.types import Message, Record
from lightrft.utils.answers import concluded, plain_words, vote
from lightrft.utils.choices import letter
from lightrft.utils.objects import first_json_object
from lightrft.utils.paths import expanded

Split = Literal["train", "evaluate"]
BOXED = "Think step by step, and write the final answer inside \\boxed{}."
TAGGED = "Put nothing but your final answer between <answer> and </answer>."

log = logging.getLogger("lightrft")


class NoSplitError(ValueError):
    """A task has no records in a split, or their file is not there; the message names the cure."""


class Records(list[Record]):
    """Records, and how many rows had to be skipped on the way."""

    def __init__(self, records: Sequence[Record] = (), skipped: int = 0) -> None:
        super().__init__(records)
        self.skipped = skipped


def distinct_questions(
    name: str,
    draw: Callable[[random.Random], tuple[str, str]],
    split: str,
    seed: int,
    train: int,
    evaluate: int,
) -> dict[str, str]:
    """Answers by question, as many as the split has of what `draw` makes. Those of the evaluation are the same for every seed, and no
    question is in both splits."""

    def apart(source: random.Random, count: int, without: Container[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        while len(found) < count:
            question, answer = draw(source)
            if question not in without:
                found[question] = answer
        return found

    held_out = apart(random.Random(name), evaluate, {})
    return held_out if split == "evaluate" else apart(random.Random(f"{name}/{seed}"), train, held_out)


Load = Callable[[Split, TaskConfig, str, int], Records]
"""(split, options, data folder or "", seed) -> records. NoSplitError for a split that is not there, ValueError for broken rows."""


@dataclass(frozen=True)
class Measure:
    """The mean of one reward over an evaluation, shown beside the score."""

    reward: str
    """A name in Task.rewards, usually one with weight 0."""
    weight: Callable[[Any], float] = lambda _target: 1.0
    """How much a prompt counts, by its target: the number of its instructions, for instance."""


@dataclass(frozen=True)
class Task:
    """Data, format, reward and self-check under one name."""

    name: str
    load: Load
    rewards: Mapping[str, float]
    """Reward name or import path -> weight; empty: the user must give rewards.functions."""
    gold: Callable[[Record], str]
    """The whole text of an answer that a perfect model could give; the rewards must give it full marks."""
    extract: Callable[[str], str] | None = None
    """What a majority vote counts of an answer: answers that agree must give the same text, "" has no vote. None: what the
    rewards compare (`extractor`)."""
    max_tokens: int = 512
    """Room that answers usually need in `lightrft evaluate`, in tokens; 0: nothing is known of them, and rollout.max_tokens is it."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Name -> what an evaluation reports besides the score."""


def _same_text(answer: str) -> str:
    return " ".join(concluded(answer).split())


def _same_object(answer: str) -> str:
    found = first_json_object(concluded(answer))
    return "" if found is None else json.dumps(found, sort_keys=True)


def _letter_or_result(answer: str) -> str:
    return letter(answer) or vote(answer)


COMPARED: Mapping[str, Callable[[str], str]] = {
    "choice": letter,
    "choice_or_math": _letter_or_result,
    "words": plain_words,
    "exact": _same_text,
    "json": _same_object,
    "json_fields": _same_object,
}
"""Reward -> what of an answer it compares with the target; the others compare a result as mathematics."""


def extractor(rewards: Mapping[str, float]) -> Callable[[str], str]:
    """What a majority vote counts of an answer, by the first of these rewards that compares text."""
    return next((COMPARED[name] for name, weight in rewards.items() if weight > 0 and name in COMPARED), vote)


@dataclass(frozen=True)
class Place:
    """One file or hub split with rows of a built-in task."""

    file: str
    """Path below the data folder."""
    hub: str
    """Hub name, with ":subset" where there are subsets; empty: none there."""
    split: str
    format: str | Format
    hub_format: str | Format = ""
    """Format of the hub's rows; empty: the same."""
    keep: Callable[[Row], bool] = lambda _row: True
    """False for rows that are known to be unusable or to belong elsewhere; they are left out, and counted in the log."""


def placed(messages: Sequence[Message], folder: Path | None, config: TaskConfig) -> list[Message]:
    """The messages with paths below `folder`. ValueError for a file that lies elsewhere and that no setting allows."""
    if all(isinstance(m["content"], str) for m in messages):  # nothing but text: a million rows pass here
        return [Message(role=m["role"], content=m["content"]) for m in messages]
    below = located(messages, folder or Path())
    found = [Message(role=m["role"], content=m["content"]) for m in below]
    if folder is None:
        return found
    root = expanded(config.media_root, "tasks.media_root") if config.media_root else folder
    if (stray := outside(found, root)) is not None:
        raise ValueError(
            f"{stray} lies outside {root}, and records may name files below it alone. Move it there, or set tasks.media_root to a folder "
            "that holds all of them (/: anywhere)."
        )
    return found


def _compared(target: Any, folder: Path | None, config: TaskConfig) -> Any:
    """A target whose media lie below `folder` too, where it is a list of responses to compare (datasets/preferences.py)."""
    if not isinstance(target, list) or not all(
        isinstance(t, dict) and {"messages", "grades"} <= t.keys() for t in target
    ):
        return target
    return [{**one, "messages": placed(one["messages"], folder, config)} for one in target]


def hub_folder() -> Path:
    """Where files of the hub's data sets lie."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


def media_folder(place: str) -> Path:
    """The folder by which relative paths of pictures and sounds go in rows of a file, or of a data set of the hub."""
    return base_of(place) if is_local(place) else hub_folder()


def records(
    rows: Sequence[tuple[str, Row]],
    form: Format,
    config: TaskConfig,
    bad: BadRecords,
    *,
    source: str,
    instruction: str,
    folder: Path | None = None,
) -> Records:
    """Rows through a format: system message before, instruction after the question; broken rows go to `bad`.

    Relative paths of pictures, clips and sounds are put below `folder`, where all must lie (or below tasks.media_root); none is
    read. Without a folder a program of ours has made the rows, and they stay as they are.
    """
    found = Records()
    for where, row in rows:
        try:
            example = form(row, config)
            messages = conversation(
                example, system=config.system, instruction=config.instruction or instruction
            )
            messages, target = placed(messages, folder, config), _compared(example.target, folder, config)
        except Exception as error:  # a row of any shape is that row's fault, and is named
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            bad(f"{where}: {kind}{error}")
            continue
        found.append(
            Record(id=f"{source}/{where}", messages=messages, target=target, source=source, columns=row)
        )
    found.skipped = bad.skipped
    return found


def conversation(example: Example, *, system: str, instruction: str) -> list[Message]:
    """The messages of one question; the instruction goes on a line of its own after the last user message."""
    if isinstance(example.prompt, str):
        messages = [Message(role="user", content=example.prompt)]
    else:
        messages = list(example.prompt)
    if instruction:
        last = messages[-1]
        messages[-1] = Message(role=last["role"], content=_with_line(last["content"], instruction))
    if system and messages[0]["role"] == "system":
        raise ValueError(
            "the row has a system message of its own, and tasks.system is set too. Leave tasks.system empty."
        )
    return [Message(role="system", content=system), *messages] if system else messages


def _with_line(content: Any, line: str) -> Any:
    if isinstance(content, str):
        return f"{content}\n{line}"
    if content and isinstance(content[-1], dict) and content[-1].get("type") == "text":
        return [*content[:-1], {"type": "text", "text": f"{content[-1].get('text')}\n{line}"}]
    return [*content, {"type": "text", "text": f"\n{line}"}]


def from_places(
    name: str,
    train: Sequence[Place],
    evaluate: Sequence[Place],
    *,
    instruction: str = BOXED,
    no_train: str = "",
) -> Load:
    """A loader that reads the task's files below the data folder or, without one, its hub data sets."""

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        if split == "train" and not train:
            raise NoSplitError(f"task '{name}' has no training rows: {no_train}")
        bad = BadRecords(config.on_bad_record)
        found = Records()
        for place in train if split == "train" else evaluate:
            if not data and not place.hub:
                raise ValueError(
                    f"task '{name}' has no hub data set. Set data=FOLDER with {place.file} in it."
                )
            where = str(needed(name, data, place)) if data else place.hub
            rows = list(read(where, place.split, bad))
            kept = [row for row in rows if place.keep(row[1])]
            if len(kept) < len(rows):
                log.info(
                    "%s: %d of %d rows left out (no answer, or of another split)",
                    where,
                    len(rows) - len(kept),
                    len(rows),
                )
            chosen = place.format if data or not place.hub_format else place.hub_format
            form = FORMATS[chosen] if isinstance(chosen, str) else chosen
            folder = Path(where).parent if data else hub_folder()
            found.extend(
                records(kept, form, config, bad, source=name, instruction=instruction, folder=folder)
            )
        found.skipped = bad.skipped
        return limited(found, split, config)

    return load


def needed(name: str, data: str, place: Place) -> Path:
    """The place's file below the data folder; ValueError with the cure if it is not there."""
    path = expanded(data, "data") / place.file
    if not path.is_file():
        instead = f", or leave data empty for the hub's {place.hub}" if place.hub else ""
        raise NoSplitError(
            f"task '{name}' needs {path}, which is not there. Set data=FOLDER with {place.file} in it{instead}."
        )
    return path


def own_rows(split: Split, config: TaskConfig, data: str) -> tuple[str, str]:
    """Where the rows of task `file` are, below the data folder where nothing is there without it, and which split of them."""
    train = split == "train"
    place = config.train_file if train else config.evaluate_file
    if data and is_local(place) and not is_there(place):
        place = str(Path(data) / place)
    return place, config.train_split if train else config.evaluate_split


def limited(found: Records, split: Split, config: TaskConfig) -> Records:
    """The first tasks.train_limit training records, or all."""
    if split == "train" and config.train_limit:
        return Records(found[: config.train_limit], found.skipped)
    return found


def boxed_gold(record: Record) -> str:
    """A right answer with the target in \\boxed{}."""
    return f"The answer is \\boxed{{{record.target}}}."


def bare_gold(record: Record) -> str:
    """The target alone, as text; of a judge's verdict all that says it."""
    return record.target.response if isinstance(record.target, Verdict) else str(record.target)


def chosen_gold(record: Record) -> str:
    """The text of the response with the highest grade."""
    best = max(record.target, key=lambda one: max(one["grades"].values()))
    return str(best["messages"][-1]["content"])


def no_option(name: str, option: str) -> None:
    """ValueError for an option of a task that has none."""
    if option:
        raise ValueError(f"task '{name}:{option}': {name} has no options. Write {name}.")
