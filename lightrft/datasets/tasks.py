"""Tasks: where the data lies, how a row becomes a question, which reward judges the answers, and what a perfect
answer looks like.

A task of your own is a `Task` in a module or file, named by import path ("acme.tasks:riddles"), or the built-in task
`file` over your rows. `Task.rewards` holds names, so that rewards can be resolved in their own processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightrft.config import TaskConfig
from lightrft.datasets import sentences, tiny
from lightrft.datasets.formats import FORMATS, Example, Format
from lightrft.datasets.sources import BadRecords, Row, is_file, read
from lightrft.types import Message, Record
from lightrft.utils.answers import concluded, vote
from lightrft.utils.imports import require, resolve

Split = Literal["train", "evaluate"]
BOXED = "Think step by step, and write the final answer inside \\boxed{}."
TAGGED = "Put nothing but your final answer between <answer> and </answer>."

log = logging.getLogger("lightrft")


class Records(list[Record]):
    """Records, and how many rows had to be skipped on the way."""

    def __init__(self, records: Sequence[Record] = (), skipped: int = 0) -> None:
        super().__init__(records)
        self.skipped = skipped


Load = Callable[[Split, TaskConfig, str, int], Records]
"""(split, options, data folder or "", seed) -> records. Raises ValueError for missing files and broken rows."""


@dataclass(frozen=True)
class Task:
    """Data, format, reward and self-check under one name."""

    name: str
    load: Load
    rewards: Mapping[str, float]
    """Reward name or import path -> weight; empty: the user must give rewards.functions."""
    gold: Callable[[Record], str]
    """The whole text of an answer that a perfect model could give; the rewards must give it full marks."""
    extract: Callable[[str], str] = vote
    """What a majority vote counts of an answer: answers that agree must give the same text."""
    max_tokens: int = 512
    """Room that answers usually need; a hint for configurations."""


@dataclass(frozen=True)
class Place:
    """One file or hub split with rows of a built-in task."""

    file: str
    """Path below the data folder."""
    hub: str
    """Hub name, with ":subset" where there are subsets."""
    split: str
    format: str
    hub_format: str = ""
    """Format of the hub's rows; empty: the same."""
    keep: Callable[[Row], bool] = lambda row: True
    """False for rows that are known to be unusable or to belong elsewhere; they are left out, and counted in the log."""


def records(
    rows: Sequence[tuple[str, Row]],
    form: Format,
    config: TaskConfig,
    bad: BadRecords,
    *,
    source: str,
    instruction: str,
) -> Records:
    """Rows through a format: system message before, instruction after the question; broken rows go to `bad`."""
    found = Records()
    for where, row in rows:
        try:
            example = form(row, config)
            messages = conversation(
                example, system=config.system, instruction=config.instruction or instruction
            )
        except ValueError as error:
            bad(f"{where}: {error}")
            continue
        found.append(Record(id=f"{source}/{where}", messages=messages, target=example.target, source=source))
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
        if not isinstance(last["content"], str):
            raise ValueError(
                "tasks.instruction cannot be added to a message made of parts. Leave it empty, or put the text into the rows."
            )
        messages[-1] = Message(role=last["role"], content=f"{last['content']}\n{instruction}")
    if system and messages[0]["role"] == "system":
        raise ValueError(
            "the row has a system message of its own, and tasks.system is set too. Leave tasks.system empty."
        )
    return [Message(role="system", content=system), *messages] if system else messages


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
            raise ValueError(f"task '{name}' has no training rows: {no_train}")
        bad = BadRecords(config.on_bad_record)
        found = Records()
        for place in train if split == "train" else evaluate:
            where = str(Path(data) / place.file) if data else place.hub
            if data and not Path(where).expanduser().is_file():
                raise ValueError(
                    f"task '{name}' needs {where}, which is not there. Set data=FOLDER with {place.file} in it, or leave data empty for the hub's {place.hub}."
                )
            rows = list(read(where, place.split, bad))
            kept = [row for row in rows if place.keep(row[1])]
            if len(kept) < len(rows):
                log.info(
                    "%s: %d of %d rows left out (no answer, or of another split)",
                    where,
                    len(rows) - len(kept),
                    len(rows),
                )
            form = FORMATS[place.format if data or not place.hub_format else place.hub_format]
            found.extend(records(kept, form, config, bad, source=name, instruction=instruction))
        found.skipped = bad.skipped
        return limited(found, split, config)

    return load


def limited(found: Records, split: Split, config: TaskConfig) -> Records:
    """The first tasks.train_limit training records, or all."""
    if split == "train" and config.train_limit:
        return Records(found[: config.train_limit], found.skipped)
    return found


def boxed_gold(record: Record) -> str:
    return f"The answer is \\boxed{{{record.target}}}."


def tagged_gold(record: Record) -> str:
    """ValueError for the few reasoning-gym data sets that score answers but state none."""
    if record.target["answer"] is None:
        raise ValueError(
            f"{record.id}: reasoning-gym states no answer to this question, so there is no gold answer to check."
        )
    return f"<answer>{record.target['answer']}</answer>"


def bare_gold(record: Record) -> str:
    return str(record.target)


def gsm8k(option: str) -> Task:
    """Grade-school word problems (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168)."""
    _no_option("gsm8k", option)
    train = Place("gsm8k/train.jsonl", "openai/gsm8k:main", "train", "gsm8k")
    return Task(
        "gsm8k",
        from_places("gsm8k", [train], [replace(train, file="gsm8k/test.jsonl", split="test")]),
        {"math": 1.0},
        boxed_gold,
    )


def math(option: str) -> Task:
    """Competition mathematics: MATH to train on, MATH-500 to evaluate (Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874)."""
    _no_option("math", option)
    train = Place(
        "math_train/train.jsonl.gz",
        "nlile/hendrycks-MATH-benchmark",
        "train",
        "math",
        keep=lambda row: bool(row.get("answer")),
    )
    evaluate = Place("math500/test.jsonl", "HuggingFaceH4/MATH-500", "test", "math")
    return Task("math", from_places("math", [train], [evaluate]), {"math": 1.0}, boxed_gold, max_tokens=2048)


def aime(option: str) -> Task:
    """American Invitational Mathematics Examination: 1983-2023 to train on; 2024 and 2025, or the year in the option, to evaluate."""
    years = {
        "2024": Place("aime/aime_2024.jsonl", "HuggingFaceH4/aime_2024", "train", "math"),
        "2025": Place("aime/aime_2025.jsonl", "math-ai/aime25", "test", "math"),
    }
    if option and option not in years:
        raise ValueError(f"task 'aime:{option}': there are aime:2024, aime:2025, and aime for both.")
    train = Place(
        "aime/aime_1983_2023.jsonl", "di-zhang-fdu/AIME_1983_2024", "train", "math", "aime_archive",
        keep=lambda row: int(row.get("year") or row.get("Year") or 0) <= 2023,
    )  # fmt: skip
    name = f"aime:{option}" if option else "aime"
    chosen = [years[option]] if option else list(years.values())
    return Task(name, from_places(name, [train], chosen), {"math": 1.0}, boxed_gold, max_tokens=4096)


def svamp(option: str) -> Task:
    """One- and two-step word problems, for evaluation only (Patel et al. 2021, https://arxiv.org/abs/2103.07191)."""
    _no_option("svamp", option)
    place = Place("svamp/svamp.jsonl", "ChilleD/SVAMP", "train+test", "svamp")
    load = from_places(
        "svamp", [], [place], no_train="it is a test set. Train on gsm8k, and name svamp in tasks.evaluate."
    )
    return Task("svamp", load, {"math": 1.0}, boxed_gold, max_tokens=256)


def file(option: str) -> Task:
    """One's own rows: tasks.train_file and tasks.evaluate_file, read through tasks.format, judged by tasks.rewards or
    rewards.functions."""
    _no_option("file", option)
    return Task("file", _load_file, {}, bare_gold)


def demo(option: str) -> Task:
    """Turn a sentence into JSON; see sentences.py."""
    _no_option("demo", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        return limited(generated("demo", sentences.questions(split, seed), config), split, config)

    return Task(
        "demo", load, {"json": 1.0}, sentences.gold, extract=str.strip, max_tokens=sentences.MAX_TOKENS
    )


def tiny_task(option: str) -> Task:
    """Answer in the kind of characters the question has; what a tiny random model can learn in seconds; see tiny.py."""
    _no_option("tiny", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        return limited(generated("tiny", tiny.questions(split, seed), config), split, config)

    return Task("tiny", load, {"same_kind": 1.0}, tiny.gold, extract=str, max_tokens=tiny.MAX_TOKENS)


GYM_TRAIN, GYM_EVALUATE = 4096, 256
GYM_SEED = 2_000_000_000
"""Seed of every evaluation split: the same questions whatever the run's seed, so that scores can be compared.
reasoning-gym makes item i from seed + i, so training seeds lie far from it and from each other."""


def reasoning_gym(option: str) -> Task:
    """A generated task of the package reasoning-gym, named after the colon, with that package's own scorer.

    The two splits come from different seeds, and questions of the evaluation split are taken out of training.
    """
    if not option:
        raise ValueError(
            "task 'reasoning_gym' needs the name of one of its data sets: reasoning_gym:chain_sum."
        )
    gym = require("reasoning_gym", "reasoning")
    known = require("reasoning_gym.factory", "reasoning").DATASETS
    if option not in known:
        resolve(known, option, "reasoning_gym data set")
    name = f"reasoning_gym:{option}"

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        held_out = gym.create_dataset(option, seed=GYM_SEED, size=GYM_EVALUATE)
        if split == "evaluate":
            return _gym_records(name, option, list(held_out), config)
        seen = {entry["question"] for entry in held_out}
        size = config.train_limit or GYM_TRAIN
        entries = [
            e
            for e in gym.create_dataset(option, seed=1_000_000 * seed, size=size)
            if e["question"] not in seen
        ]
        if not entries:
            raise ValueError(
                f"task '{name}' has so few questions that none is left for training beside the evaluation."
            )
        return _gym_records(name, option, entries, config)

    return Task(name, load, {"reasoning_gym": 1.0}, tagged_gold, extract=concluded)


def _gym_records(
    name: str, data_set: str, entries: Sequence[Mapping[str, Any]], config: TaskConfig
) -> Records:
    found = Records()
    for number, entry in enumerate(entries):
        messages = conversation(
            Example(entry["question"], None), system=config.system, instruction=config.instruction or TAGGED
        )
        target = {"data_set": data_set, "answer": entry["answer"], "entry": dict(entry)}
        found.append(Record(id=f"{name}/{number}", messages=messages, target=target, source=name))
    return found


def generated(name: str, questions: Sequence[tuple[str, Any]], config: TaskConfig) -> Records:
    """Records of questions and answers made by a program."""
    rows = [
        (str(n), {"question": question, "answer": answer}) for n, (question, answer) in enumerate(questions)
    ]
    own = replace(config, prompt_field="question", target_field="answer")
    return records(rows, FORMATS["columns"], own, BadRecords(), source=name, instruction="")


def _load_file(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
    _check_split(split, config)
    place = config.train_file if split == "train" else config.evaluate_file
    part = config.train_split if split == "train" else config.evaluate_split
    if data and is_file(place) and not Path(place).expanduser().exists():
        place = str(Path(data) / place)
    bad = BadRecords(config.on_bad_record)
    form = resolve(FORMATS, config.format, "format")
    found = records(list(read(place, part, bad)), form, config, bad, source="file", instruction="")
    if not found:
        raise ValueError(f"{place} holds no usable rows ({bad.skipped} skipped).")
    return limited(found, split, config)


def _check_split(split: Split, config: TaskConfig) -> None:
    """Raises ValueError unless both files are named where needed and are not the same data: a split is never guessed."""
    train, evaluate = config.train_file, config.evaluate_file
    if split == "train" and not train:
        raise ValueError(
            "task 'file' needs tasks.train_file: a json, jsonl, csv or parquet file, or a hub name."
        )
    if split == "evaluate" and not evaluate:
        raise ValueError(
            "task 'file' has no evaluation rows, and none are split off by guess. Set tasks.evaluate_file, or evaluate.before_and_after=false."
        )
    if not train or not evaluate:
        return
    if is_file(train) and is_file(evaluate):
        if Path(train).expanduser().resolve() == Path(evaluate).expanduser().resolve():
            raise ValueError(
                f"tasks.train_file and tasks.evaluate_file are the same file, {train}: the score would be that of memorised rows. Split it in two."
            )
    elif train == evaluate and config.train_split == config.evaluate_split:
        raise ValueError(
            f"tasks.train_split and tasks.evaluate_split are both '{config.train_split}' of {train}. Set tasks.evaluate_split to another split."
        )


def _no_option(name: str, option: str) -> None:
    if option:
        raise ValueError(f"task '{name}:{option}': {name} has no options. Write {name}.")


def load_task(name: str) -> Task:
    """The task called NAME or NAME:OPTION, or the Task that an import path names.

    Raises ValueError for an unknown name with what was perhaps meant, and for a path that names no Task.
    """
    builtin, _, option = name.partition(":")
    if builtin in TASKS:
        return TASKS[builtin](option)
    found: Any = resolve(TASKS, name, "task")
    if not isinstance(found, Task):
        raise ValueError(f"task '{name}' is a {type(found).__name__}; it must be a lightrft.datasets.Task.")
    return found


TASKS: dict[str, Callable[[str], Task]] = {
    "aime": aime,
    "demo": demo,
    "file": file,
    "gsm8k": gsm8k,
    "math": math,
    "reasoning_gym": reasoning_gym,
    "svamp": svamp,
    "tiny": tiny_task,
}
