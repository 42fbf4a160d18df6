"""The tasks there are, by name.

A task of your own is a `Task` in a module or file, named by import path ("acme.tasks:riddles"), or the built-in task
`file` over your rows. `Task.rewards` holds names, so that rewards can be resolved in their own processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.formats import FORMATS, Example, Format
from lightrft.datasets.media_preferences import ROW_FORMATS
from lightrft.datasets.preferences import compared
from lightrft.datasets.rollouts import chosen_steps, rollouts_folder
from lightrft.datasets.shards import saved_set
from lightrft.datasets.sources import BadRecords, Row, is_file, read
from lightrft.tasks import (
    benchmarks,
    calculator,
    code,
    facts,
    interpreter,
    media_benchmarks,
    media_pairs,
    media_tasks,
    moving,
    pictures,
    questions,
    repair,
    safety,
    sentences,
    tiny,
)
from lightrft.tasks.base import (
    BOXED,
    TAGGED,
    Load,
    NoSplitError,
    Place,
    Records,
    Split,
    Task,
    bare_gold,
    boxed_gold,
    chosen_gold,
    conversation,
    from_places,
    limited,
    media_folder,
    no_option,
    own_rows,
    records,
)
from lightrft.types import OPENING, Message, Record
from lightrft.utils.answers import concluded
from lightrft.utils.imports import require, resolve
from lightrft.utils.paths import expanded

__all__ = ["TASKS", "Load", "NoSplitError", "Place", "Records", "Split", "Task", "load_task"]


def gsm8k(option: str) -> Task:
    """Grade-school word problems (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168); gsm8k:confidence wants to be told how sure an answer
    is, too."""
    if option not in ("", "confidence"):
        raise ValueError(f"task 'gsm8k:{option}': there are gsm8k and gsm8k:confidence.")
    train = Place("gsm8k/train.jsonl", "openai/gsm8k:main", "train", "gsm8k")
    places = [train], [replace(train, file="gsm8k/test.jsonl", split="test")]
    if not option:
        return Task("gsm8k", from_places("gsm8k", *places), {"math": 1.0}, boxed_gold)
    name = f"gsm8k:{option}"
    load = from_places(name, *places, instruction=f"{BOXED} {CONFIDENCE}")
    return Task(name, load, {"confident_math": 1.0}, lambda record: f"{boxed_gold(record)}\nConfidence: 100%")


CONFIDENCE = "End with a line that says how likely it is that your answer is right, from 0% to 100%, like this: Confidence: 70%"


def math(option: str) -> Task:
    """Competition mathematics: MATH to train on, MATH-500 to evaluate (Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874)."""
    no_option("math", option)
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
    no_option("svamp", option)
    place = Place("svamp/svamp.jsonl", "ChilleD/SVAMP", "train+test", "svamp")
    load = from_places(
        "svamp", [], [place], no_train="it is a test set. Train on gsm8k, and name svamp in tasks.evaluate."
    )
    return Task("svamp", load, {"math": 1.0}, boxed_gold, max_tokens=256)


def file(option: str) -> Task:
    """One's own rows: tasks.train_file and tasks.evaluate_file, read through tasks.format, judged by tasks.rewards or
    rewards.functions."""
    no_option("file", option)
    return Task("file", _load_file, {}, bare_gold, max_tokens=0)


def _for_tools(name: str, made: ModuleType) -> Callable[[str], Task]:
    """A task of generated questions with numbers for answers, which a policy with a tool can answer."""

    def task(option: str) -> Task:
        no_option(name, option)

        def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
            return limited(generated(name, made.questions(split, seed), config), split, config)

        return Task(name, load, {"number": 1.0}, made.gold, max_tokens=made.MAX_TOKENS)

    return task


def episodes(option: str) -> Task:
    """Nothing but numbered episodes: the environment of the run says first what it is about, and gives the reward."""
    no_option("episodes", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        count = EPISODES if split == "train" else HELD_OUT_EPISODES
        asked: list[Message] = [Message(role="user", content=OPENING)]
        found = [Record(f"episodes/{split}/{n}", asked, None, "episodes") for n in range(count)]
        return limited(Records(found), split, config)

    return Task("episodes", load, {"environment": 1.0}, lambda _record: "", max_tokens=1024)


EPISODES, HELD_OUT_EPISODES = 4096, 128


def demo(option: str) -> Task:
    """Turn a sentence into JSON, of all kinds or as `demo:trip` of one; see sentences.py."""
    kind = sentences.kind_named(option)
    name = f"demo:{kind}" if kind else "demo"

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        return limited(generated(name, sentences.questions(split, seed, kind), config), split, config)

    return Task(name, load, {"json": 1.0}, sentences.gold, extract=str.strip, max_tokens=sentences.MAX_TOKENS)


def tiny_task(option: str) -> Task:
    """Answer in the kind of characters the question has; what a tiny random model can learn in seconds; see tiny.py."""
    no_option("tiny", option)

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        return limited(generated("tiny", tiny.questions(split, seed), config), split, config)

    return Task("tiny", load, {"same_kind": 1.0}, tiny.gold, extract=str, max_tokens=tiny.MAX_TOKENS)


def demo_pairs(option: str) -> Task:
    """Pairs of responses to the demo's questions, of which the rejected one has a fault of form or content; see sentences.py."""
    no_option("demo_pairs", option)
    return Task(
        "demo_pairs",
        _pairs_loader("demo_pairs", sentences.pairs),
        {},
        chosen_gold,
        max_tokens=sentences.MAX_TOKENS,
    )


def tiny_pairs(option: str) -> Task:
    """Pairs of responses for a reward model, of which the chosen one has the question's kind of characters; see tiny.py."""
    no_option("tiny_pairs", option)
    return Task(
        "tiny_pairs", _pairs_loader("tiny_pairs", tiny.pairs), {}, chosen_gold, max_tokens=tiny.MAX_TOKENS
    )


def _pairs_loader(name: str, pairs: Callable[[str, int], list[Row]]) -> Load:
    """A loader of pairs that a program makes for a split and a seed."""

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        rows = [(str(n), row) for n, row in enumerate(pairs(split, seed))]
        found = records(rows, compared, config, BadRecords(), source=name, instruction="")
        return limited(found, split, config)

    return load


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
                f"task '{name}' has so few prompts that none is left for training beside the evaluation."
            )
        return _gym_records(name, option, entries, config)

    return Task(name, load, {"reasoning_gym": 1.0}, gym_gold, extract=concluded)


def gym_gold(record: Record) -> str:
    """ValueError for the few reasoning-gym data sets that score answers but state none."""
    if record.target["answer"] is None:
        raise ValueError(
            f"{record.id}: reasoning-gym states no answer to this question, so there is no gold answer to check."
        )
    return f"<answer>{record.target['answer']}</answer>"


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


def generated(name: str, questions: Sequence[tuple[str | list[Message], Any]], config: TaskConfig) -> Records:
    """Records of questions and answers made by a program."""
    rows = [
        (str(n), {"question": question, "answer": answer}) for n, (question, answer) in enumerate(questions)
    ]
    own = replace(config, prompt_field="question", target_field="answer")
    return records(rows, FORMATS["columns"], own, BadRecords(), source=name, instruction="")


def row_format(name: str) -> Format:
    """How a row becomes messages and target: the format called so, or what an import path names."""
    return resolve({**ROW_FORMATS, **code.CODE_FORMATS, **repair.FORMATS}, name, "format")


def _load_file(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
    check_split(split, config)
    place, part = own_rows(split, config, data)
    bad = BadRecords(config.on_bad_record)
    form = row_format(config.format)
    folder = media_folder(place)
    rows = list(read(place, part, bad))
    found = records(rows, form, config, bad, source="file", instruction="", folder=folder)
    if not found:
        raise ValueError(f"{place} holds no usable rows ({bad.skipped} skipped).")
    return limited(found, split, config)


def check_split(split: Split, config: TaskConfig) -> None:
    """Raises ValueError unless both files are named where needed and are not the same data: a split is never guessed."""
    train, evaluate = config.train_file, config.evaluate_file
    if split == "train" and not train:
        raise NoSplitError(
            "task 'file' needs tasks.train_file: a json, jsonl, csv or parquet file, or a hub name."
        )
    if split == "evaluate" and not evaluate:
        raise NoSplitError(
            "task 'file' has no evaluation rows, and none are split off by guess. Set tasks.evaluate_file, or evaluate.before_and_after=false and evaluate.every_steps=0."
        )
    if not train or not evaluate:
        return
    if saved_set(train) is None and is_file(train) and is_file(evaluate):
        if (
            expanded(train, "tasks.train_file").resolve()
            == expanded(evaluate, "tasks.evaluate_file").resolve()
        ):
            _check_steps(config)
    elif train == evaluate and config.train_split == config.evaluate_split:
        raise ValueError(
            f"tasks.train_split and tasks.evaluate_split are both '{config.train_split}' of {train}. Set tasks.evaluate_split to another split."
        )


def _check_steps(config: TaskConfig) -> None:
    """Raises ValueError where training and evaluation rows come from one place, unless that is a run and other steps of it."""
    train, folder = config.train_file, rollouts_folder(config.train_file)
    if folder is None:
        raise ValueError(
            f"tasks.train_file and tasks.evaluate_file are the same file, {train}: the score would be that of memorised rows. Split it in two."
        )
    parts = (chosen_steps(train, folder, split) for split in (config.train_split, config.evaluate_split))
    shared = sorted(set.intersection(*map(set, parts)))
    if shared:
        raise ValueError(
            f"tasks.train_file and tasks.evaluate_file are the same run, {train}, and both take step {shared[0]}. Name steps for each, e.g. "
            "tasks.train_split=1-8 and tasks.evaluate_split=9-."
        )


def load_task(name: str) -> Task:
    """The task called NAME or NAME:OPTION, or the Task that an import path names.

    Raises ValueError for an unknown name with what was perhaps meant, and for a path that names no Task.
    """
    builtin, _, option = name.partition(":")
    if builtin in TASKS:
        return TASKS[builtin](option)
    found: Any = resolve(TASKS, name, "task")
    if not isinstance(found, Task):
        raise ValueError(f"task '{name}' is a {type(found).__name__}; it must be a lightrft.tasks.base.Task.")
    return found


def load_tasks(names: Iterable[str]) -> dict[str, Task]:
    """Given name -> task. ValueError, as in `load_task`, and for two tasks that call themselves the same: rewards and scores are kept by
    that name."""
    tasks = {name: load_task(name) for name in names}
    given: dict[str, str] = {}
    for name, task in tasks.items():
        if given.setdefault(task.name, name) != name:
            raise ValueError(
                f"tasks {given[task.name]} and {name} are both called '{task.name}', so that their rewards and scores would be mixed up. "
                "Give one of them another Task.name."
            )
    return tasks


TASKS: dict[str, Callable[[str], Task]] = {
    "aime": aime,
    "calculator": _for_tools("calculator", calculator),
    "facts": _for_tools("facts", facts),
    "interpreter": _for_tools("interpreter", interpreter),
    "demo": demo,
    "demo_pairs": demo_pairs,
    "episodes": episodes,
    "file": file,
    "gsm8k": gsm8k,
    "math": math,
    "reasoning_gym": reasoning_gym,
    "svamp": svamp,
    "tiny": tiny_task,
    "tiny_pairs": tiny_pairs,
    **benchmarks.TASKS,
    **code.TASKS,
    **media_benchmarks.TASKS,
    **media_tasks.TASKS,
    **media_pairs.TASKS,
    **moving.TASKS,
    **pictures.TASKS,
    **questions.TASKS,
    **safety.TASKS,
}
