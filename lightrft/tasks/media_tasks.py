"""Tasks with pictures, clips and sounds.

Where a data set has no split of its own, one is made by a rule that looks at the row alone (stated in each task), so that
it is the same for everyone and keeps together what belongs together.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, asked, field, only, text_field
from lightrft.datasets.sources import BadRecords, Located, Row, read
from lightrft.tasks import chorales, clips, scenes
from lightrft.tasks.base import (
    TAGGED,
    Load,
    Place,
    Records,
    Split,
    Task,
    boxed_gold,
    from_places,
    limited,
    needed,
    no_option,
    records,
)
from lightrft.types import Record
from lightrft.utils.answers import plain_words
from lightrft.utils.choices import letter

THOUGHT = (
    "Put your thoughts between <think> and </think>, then your final answer between <answer> and </answer>."
)
LETTER = "Answer with the letter of the right choice, between <answer> and </answer>."
BOXED_OR_LETTER = (
    "Think step by step, and write the final answer, the letter where there are choices, inside \\boxed{}."
)
UNCHANGED = "Write nothing but your choice, as it stands there, between <answer> and </answer>."


def tagged_gold(record: Record) -> str:
    """The target in <answer> tags."""
    return f"<answer>{record.target}</answer>"


def thought_gold(record: Record) -> str:
    """The target in <answer> tags, after a thought in <think> tags."""
    return f"<think>It can be seen.</think><answer>{record.target}</answer>"


def held_out(key: str) -> bool:
    """Whether the rows with this key, about a fifth of all keys, belong to the evaluation."""
    return zlib.crc32(key.encode()) % 5 == 0


def halves(place: Place, is_evaluated: Callable[[Row], bool]) -> tuple[list[Place], list[Place]]:
    """One file as two splits by a rule."""
    train = replace(place, keep=lambda row: not is_evaluated(row))
    return [train], [replace(place, keep=is_evaluated)]


def choices(options: Sequence[Any]) -> str:
    """One line for each choice, lettered from (A) to (J) at most."""
    return "\n".join(f"({name}) {option}" for name, option in zip("ABCDEFGHIJ", options, strict=False))


def ready(row: Row, config: TaskConfig) -> Example:
    """A row made by a program: `question`, `target`, and its media."""
    return Example(asked(row["question"], row), row["target"])


def nlvr_row(row: Row, config: TaskConfig) -> Example:
    """Fields `sentence`, `image`, and `label`: true or false."""
    question = f"Is this true of the picture? {text_field(row, 'sentence').strip()}"
    return Example(asked(question, row), text_field(row, "label").strip())


def nlvr_places() -> tuple[list[Place], list[Place]]:
    """Both splits of dev.jsonl, by its sentences."""
    place = Place("nlvr/dev.jsonl", "", "", nlvr_row)
    return halves(place, lambda row: held_out(plain_words(str(row.get("sentence")))))


def nlvr(option: str) -> Task:
    """Is a sentence true of a picture with coloured shapes (Suhr et al. 2017, https://aclanthology.org/P17-2034).

    All pictures that were shown with one sentence are in the same split: a fifth of the sentences of dev.jsonl is
    evaluated, the others are trained on. `nlvr:test` trains on all of dev.jsonl and evaluates on test.jsonl.
    Of a single box (see scenes.py), on the pictures and the split of `nlvr`: `nlvr:objects` asks how many objects are in it,
    `nlvr:most` which colour, or which shape, most of them have, each answer being right equally often.
    """
    _one_of("nlvr", option, "test", *NLVR_BOXES)
    if option in NLVR_BOXES:
        return _nlvr_boxes(option)
    train, evaluate = nlvr_places()
    if option:
        place = Place("nlvr/dev.jsonl", "", "", nlvr_row)
        train, evaluate = [place], [replace(place, file="nlvr/test.jsonl")]
    name = _named("nlvr", option)
    load = from_places(name, train, evaluate, instruction=f"Answer true or false. {TAGGED}")
    return Task(name, load, {"words": 1.0}, tagged_gold, extract=plain_words, max_tokens=256)


NLVR_BOXES: dict[str, tuple[scenes.Ask, str, str]] = {
    "objects": (scenes.counted, "Answer with the number.", "number"),
    "most": (scenes.most, "", "words"),
}
"""Option -> what is asked of each box, how to answer, and the reward."""


def _nlvr_boxes(option: str) -> Task:
    """The split of nlvr; a box that was drawn in both of its parts is evaluated only."""
    name, (_, how, reward) = f"nlvr:{option}", NLVR_BOXES[option]
    load = from_program(name, partial(box_rows, name, option), instruction=f"{how} {TAGGED}".strip())
    extract = None if reward == "number" else plain_words
    return Task(name, load, {reward: 1.0}, tagged_gold, max_tokens=64, extract=extract)


def box_rows(name: str, option: str, split: Split, data: str, bad: BadRecords) -> list[Located]:
    """Place and row (question, target, image) of each question about a box, for the task `name`."""
    (train,), (evaluate,) = nlvr_places()
    path = needed(name, data, train)
    pictures = list(read(str(path), "", bad))
    kept = [(where, row) for where, row in pictures if evaluate.keep(row)]
    others = [(where, row) for where, row in pictures if train.keep(row)]
    return scenes.questions(kept, others, path.parent, split, bad, NLVR_BOXES[option][0])


def shapes(option: str) -> Task:
    """Yes or no about 30 x 30 pictures with nine shapes (Andreas et al. 2016, https://arxiv.org/abs/1511.02799).

    Every fifth picture of train.small is evaluated, the others are trained on. `shapes:val` trains on all of
    train.small and evaluates on val. Two thirds of the answers are no.
    """
    _one_of("shapes", option, "val")
    name = _named("shapes", option)

    def rows(split: Split, data: str, bad: BadRecords) -> list[Located]:
        part = "val" if option and split == "evaluate" else "train.small"
        lines = needed(name, data, Place(f"shapes/{part}.jsonl", "", "", ready))
        pictures = _pictures(needed(name, data, Place(f"shapes/{part}.npz", "", "", ready)))
        return [
            (where, _shapes_row(row, pictures))
            for where, row in read(str(lines), "", bad)
            if option or (row["index"] % 5 == 4) == (split == "evaluate")
        ]

    load = from_program(name, rows, instruction=f"Answer yes or no. {TAGGED}")
    return Task(name, load, {"words": 1.0}, tagged_gold, extract=plain_words, max_tokens=256)


def puzzlevqa_row(row: Row, config: TaskConfig) -> Example:
    """Fields `image`, `question`, `options`, and `answer`, which is one of the options."""
    options = [str(option) for option in field(row, "options")]
    answer = str(field(row, "answer"))
    if answer not in options:
        raise ValueError(f"field 'answer' is {answer!r}, which is none of the options: {', '.join(options)}.")
    question = f"{text_field(row, 'question').strip()}\n{choices(options)}"
    return Example(asked(question, row), "ABCDEFGHIJ"[options.index(answer)])


def puzzlevqa(option: str) -> Task:
    """The task of saying which choice completes an abstract pattern (Chia et al. 2024, https://arxiv.org/abs/2403.13315).

    Split by what a picture shows (its caption): a fifth of them is evaluated.
    """
    no_option("puzzlevqa", option)
    place = Place("puzzlevqa/puzzlevqa.jsonl", "declare-lab/PuzzleVQA", "train", puzzlevqa_row)
    parts = halves(place, lambda row: held_out(str(row.get("caption"))))
    load = from_places("puzzlevqa", *parts, instruction=LETTER)
    return Task("puzzlevqa", load, {"choice": 1.0}, tagged_gold, extract=letter)


def mathvision_row(row: Row, config: TaskConfig) -> Example:
    """Fields `image` (on the hub `decoded_image`), `question`, `options` and `answer`: a letter where there are options.

    The picture comes first: it holds all parts that the question calls <image1>, <image2>, ...
    """
    options = field(row, "options")
    own = "" if list(options) == list("ABCDE")[: len(options)] else f"\n{choices(options)}"
    picture = row.get("decoded_image") or field(row, "image")
    return Example(
        asked(f"{text_field(row, 'question').strip()}{own}", only(row, image=picture)),
        str(field(row, "answer")).strip(),
    )


def mathvision(option: str) -> Task:
    """Competition mathematics with pictures, testmini (Wang et al. 2024, https://arxiv.org/abs/2402.14804).

    Problems whose id is a multiple of 5 are evaluated, the others are trained on.
    """
    no_option("mathvision", option)
    place = Place("mathvision/testmini.jsonl", "MathLLMs/MathVision", "testmini", mathvision_row)
    parts = halves(place, lambda row: int(row.get("id") or 0) % 5 == 0)
    load = from_places("mathvision", *parts, instruction=BOXED_OR_LETTER)
    return Task("mathvision", load, {"choice_or_math": 1.0}, boxed_gold, max_tokens=2048)


def spoken_digits_row(row: Row, config: TaskConfig) -> Example:
    """Fields `audio` and `digit`."""
    return Example(asked("Which digit is said?", row), str(int(field(row, "digit"))))


def spoken_digits(option: str) -> Task:
    """The task of saying which digit somebody speaks (Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset).

    The split is the data set's: a speaker's takes 0 to 4 of each digit are evaluated.
    """
    no_option("spoken_digits", option)
    load = from_places("spoken_digits", *digit_places(), instruction=f"Answer with the digit. {TAGGED}")
    return Task("spoken_digits", load, {"number": 1.0}, tagged_gold, max_tokens=64)


def digit_places() -> tuple[list[Place], list[Place]]:
    """Both splits of fsdd."""
    place = Place("fsdd/fsdd.jsonl", "", "", spoken_digits_row)
    return halves(place, lambda row: row.get("split") == "test")


SOUNDS = (
    "baby cry",
    "chainsaw",
    "clock tick",
    "dog bark",
    "fire crackling",
    "helicopter",
    "person sneeze",
    "rain",
    "rooster",
    "sea waves",
)


def esc10_row(row: Row, config: TaskConfig) -> Example:
    """Fields `audio` and `label`."""
    return Example(asked("What is to be heard?", row), text_field(row, "label").strip())


def esc10(option: str) -> Task:
    """The task of saying which of ten sounds is heard (Piczak 2015, https://github.com/karoldvl/ESC-10).

    `esc10:5` evaluates on fold 5 and trains on the others; without a number it is fold 4. Folds keep together what
    was cut from one recording.
    """
    _one_of("esc10", option, *"12345")
    name, fold = _named("esc10", option), int(option or 4)
    place = Place("esc10/esc10.jsonl", "", "", esc10_row)
    parts = halves(place, lambda row: int(row.get("fold") or 0) == fold)
    load = from_places(name, *parts, instruction=f"Answer with one of: {', '.join(SOUNDS)}. {TAGGED}")
    return Task(name, load, {"words": 1.0}, tagged_gold, extract=plain_words, max_tokens=64)


def clips_task(option: str) -> Task:
    """What was done to a clip; all kinds of question, or the one in the option (see clips.py).

    Three clips are evaluated, the others are trained on.
    """
    _one_of("clips", option, *clips.KINDS)
    name, kinds = _named("clips", option), [option] if option else list(clips.KINDS)

    def rows(split: Split, data: str, bad: BadRecords) -> list[Located]:
        path = needed(name, data, Place("video/video.jsonl", "", "", ready))
        return clips.questions(read(str(path), "", bad), path.parent, split, kinds)

    load = from_program(name, rows, instruction=TAGGED)
    return Task(name, load, {"words": 1.0}, tagged_gold, extract=plain_words, max_tokens=256)


def chorales_task(option: str) -> Task:
    """What happens in a few notes by Bach; all kinds of question, or the one in the option (see chorales.py).

    The notes and the split are those of Boulanger-Lewandowski et al. 2012 (https://arxiv.org/abs/1206.6392): its
    chorales for testing are evaluated, those for training are trained on.
    """
    _one_of("chorales", option, *chorales.KINDS)
    name, kinds = _named("chorales", option), [option] if option else list(chorales.KINDS)

    def rows(split: Split, data: str, bad: BadRecords) -> list[Located]:
        path = needed(name, data, Place("jsb_chorales/jsb-chorales-quarter.json", "", "", ready))
        return chorales.questions(json.loads(path.read_text()), split, kinds)

    load = from_program(name, rows, instruction=TAGGED)
    return Task(name, load, {"words": 1.0}, tagged_gold, extract=plain_words, max_tokens=256)


def geo3k_row(row: Row, config: TaskConfig) -> Example:
    """Fields `images`, `problem` with <image> in it, and `answer`."""
    return Example(asked(text_field(row, "problem").strip(), row), str(field(row, "answer")).strip())


def geo3k(option: str) -> Task:
    """Geometry with a figure (Lu et al. 2021, https://arxiv.org/abs/2105.04165), rewarded as in R1-V: 1 for the right
    answer and 1 for <think> and <answer> tags (https://github.com/StarsfieldAI/R1-V)."""
    no_option("geo3k", option)
    train = Place("geo3k/train.parquet", "hiyouga/geometry3k", "train", geo3k_row)
    evaluate = replace(train, file="geo3k/test.parquet", split="test")
    load = from_places("geo3k", [train], [evaluate], instruction=THOUGHT)
    return Task("geo3k", load, {"math": 1.0, "format": 1.0}, thought_gold, max_tokens=2048)


def avqa_row(row: Row, config: TaskConfig) -> Example:
    """R1-AQA's fields: `audio_path`, `question_text`, `multi_choice` and `answer`, the number of the right choice."""
    options = field(row, "multi_choice")
    answer = field(row, "answer")
    if not isinstance(answer, int) or not 0 <= answer < len(options):
        raise ValueError(
            f"field 'answer' is {answer!r}; it must number one of the {len(options)} choices from 0."
        )
    text = text_field(row, "question_text").strip().replace("video", "audio")
    question = f"{text} Choose one of: {', '.join(str(option) for option in options)}."
    return Example(asked(question, only(row, audio=field(row, "audio_path"))), str(options[answer]).strip())


def avqa(option: str) -> Task:
    """The task of saying which choice fits a sound (Yang et al. 2022, https://mn.cs.tsinghua.edu.cn/avqa), rewarded as in R1-AQA: 1 for
    the right choice and 1 for the <answer> tags alone (Li et al. 2025, https://arxiv.org/abs/2503.11197).

    The rows are one's own, in the layout of R1-AQA, since the sounds are cut from videos on the web.
    """
    no_option("avqa", option)
    train = Place("avqa/train.jsonl", "", "", avqa_row)
    load = from_places("avqa", [train], [replace(train, file="avqa/evaluate.jsonl")], instruction=UNCHANGED)
    return Task(
        "avqa", load, {"exact": 1.0, "answer_tags": 1.0}, tagged_gold, extract=plain_words, max_tokens=64
    )


def from_program(
    name: str, rows: Callable[[Split, str, BadRecords], list[Located]], *, instruction: str
) -> Load:
    """A loader for questions that a program makes of files in the data folder: rows as `ready` wants them."""

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        if not data:
            raise ValueError(f"task '{name}' has no hub data set. Set data=FOLDER with its files in it.")
        bad = BadRecords(config.on_bad_record)
        made = records(rows(split, data, bad), ready, config, bad, source=name, instruction=instruction)
        return limited(made, split, config)

    return load


def _pictures(path: Path) -> NDArray[np.uint8]:
    """(N, H, W, 3)"""
    with np.load(path) as file:
        pictures: NDArray[np.uint8] = file["images"]
    return pictures


def _shapes_row(row: Row, pictures: NDArray[np.uint8]) -> Row:
    answer = {"true": "yes", "false": "no"}[row["answer"]]
    return {"question": f"{row['query'].capitalize()}?", "target": answer, "image": pictures[row["index"]]}


def _named(name: str, option: str) -> str:
    return f"{name}:{option}" if option else name


def _one_of(name: str, option: str, *options: str) -> None:
    if option and option not in options:
        known = ", ".join(f"{name}:{other}" for other in options)
        raise ValueError(f"task '{name}:{option}': there are {name} and {known}.")


TASKS: dict[str, Callable[[str], Task]] = {
    "avqa": avqa,
    "chorales": chorales_task,
    "clips": clips_task,
    "esc10": esc10,
    "geo3k": geo3k,
    "mathvision": mathvision,
    "nlvr": nlvr,
    "puzzlevqa": puzzlevqa,
    "shapes": shapes,
    "spoken_digits": spoken_digits,
}
