"""Pairs for reward models that see or hear, made of verifiable questions: which of two texts fits a medium, or which of two media a text.

Each text and each medium is the better one as often as it is the worse one, so that nothing is to be had by looking at one side
alone, or by always preferring the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.preferences import compared
from lightrft.datasets.sources import BadRecords, Located, Row, read
from lightrft.media.parts import KINDS
from lightrft.tasks.base import Records, Split, Task, limited, needed, records
from lightrft.tasks.media_tasks import box_rows, digit_places
from lightrft.types import Record

Questions = Callable[[Split, str, BadRecords], list[Located]]
"""Split, data folder, where bad rows go -> place and row: `question`, `target` and one medium."""


def two_answers(rows: Sequence[Located], draw: random.Random) -> list[Located]:
    """A medium with its question, and the right answer beside the right answer to another medium with the same question."""
    return [
        (
            where,
            {
                "prompt": [_said("user", _medium(row), row["question"])],
                **_sides(row["target"], other["target"]),
            },
        )
        for (where, row), other in _partnered(rows, draw)
    ]


def two_media(rows: Sequence[Located], draw: random.Random) -> list[Located]:
    """A question with its answer, and a medium that it is right of beside one that another answer is right of."""
    return [
        (
            where,
            {
                "prompt": f"{row['question']} The answer: {row['target']}.",
                **_sides([_said("assistant", _medium(row))], [_said("assistant", _medium(other))]),
            },
        )
        for (where, row), other in _partnered(rows, draw)
    ]


def _sides(chosen: Any, rejected: Any) -> Row:
    return {"chosen": chosen, "rejected": rejected}


def _said(role: str, *parts: Any) -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts],
    }


def _medium(row: Row) -> dict[str, Any]:
    kind = next(kind for kind in KINDS if kind in row)
    return {"type": kind, kind: row[kind]}


def _partnered(rows: Sequence[Located], draw: random.Random) -> list[tuple[Located, Row]]:
    """Each row with another of the same question and another target; each is the other once, as far as that goes."""
    found: list[tuple[Located, Row]] = []
    for question in sorted({row["question"] for _, row in rows}):
        same = [one for one in rows if one[1]["question"] == question]
        others = [row for _, row in same]
        draw.shuffle(others)
        right = [row["target"] for _, row in same]
        for place, target in enumerate(right):
            if others[place]["target"] == target:  # change with one that loses nothing by it
                fits = (n for n, other in enumerate(others) if target not in (other["target"], right[n]))
                if (swap := next(fits, None)) is not None:
                    others[place], others[swap] = others[swap], others[place]
        pairs = zip(same, others, strict=True)
        found += [(one, other) for one, other in pairs if other["target"] != one[1]["target"]]
    draw.shuffle(found)
    return found


def _boxes(name: str, split: Split, data: str, bad: BadRecords) -> list[Located]:
    return box_rows(name, "most", split, data, bad)


def _digits(name: str, split: Split, data: str, bad: BadRecords) -> list[Located]:
    train, evaluate = digit_places()
    (place,) = train if split == "train" else evaluate
    path = needed(name, data, place)
    return [
        (
            where,
            {
                "question": "Which digit is said?",
                "target": DIGITS[int(row["digit"])],
                "audio": str(path.parent / row["audio"]),
            },
        )
        for where, row in read(str(path), "", bad)
        if place.keep(row)
    ]


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ABOUT: dict[str, Callable[[Sequence[Located], random.Random], list[Located]]] = {
    "": two_media,
    "answers": two_answers,
}
"""Option of a task -> what its pairs are of."""


def _task(name: str, questions: Callable[..., list[Located]], option: str) -> Task:
    if option not in ABOUT:
        raise ValueError(f"task '{name}:{option}': there are {name} and {name}:answers.")
    full = f"{name}:{option}" if option else name

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        if not data:
            raise ValueError(f"task '{full}' has no hub data set. Set data=FOLDER with its files in it.")
        bad = BadRecords(config.on_bad_record)
        rows = ABOUT[option](questions(full, split, data, bad), random.Random(f"{full}/{split}"))
        return limited(records(rows, compared, config, bad, source=full, instruction=""), split, config)

    return Task(full, load, {}, better)


def better(record: Record) -> str:
    """The text of the better response. ValueError where it is a picture or a sound, which no policy here writes."""
    best = max(record.target, key=lambda one: max(one["grades"].values()))["messages"][-1]["content"]
    if not isinstance(best, str):
        raise ValueError(f"{record.id}: the better response is a medium, which is for reward models alone.")
    return best


def nlvr_pairs(option: str) -> Task:
    """The task of preferring the one of two boxes of NLVR's pictures that fits a text (Suhr et al. 2017, https://aclanthology.org/P17-2034): most of its objects have a
    colour or a shape; with `nlvr_pairs:answers` which of two words fits a box. On the boxes and the split of `nlvr:most`."""
    return _task("nlvr_pairs", _boxes, option)


def spoken_digits_pairs(option: str) -> Task:
    """The task of preferring the one of two recordings that is of a digit (Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset); with
    `spoken_digits_pairs:answers` which of two digits a recording is of. On the split of `spoken_digits`."""
    return _task("spoken_digits_pairs", _digits, option)


TASKS: dict[str, Callable[[str], Task]] = {
    "nlvr_pairs": nlvr_pairs,
    "spoken_digits_pairs": spoken_digits_pairs,
}
