"""Tests of models that see and hear: MMMU, MMAU and Video-MME, for evaluation only, rows as their authors publish them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, asked, field, only, text_field
from lightrft.datasets.sources import Row
from lightrft.tasks.base import Place, Task, from_places
from lightrft.tasks.media_tasks import LETTER, UNCHANGED, choices, tagged_gold
from lightrft.types import Record
from lightrft.utils.answers import plain_words
from lightrft.utils.choices import letter

NO_TRAIN = "it is a test set. Name it in tasks.evaluate, and train on other rows."
IMAGE = re.compile(r"<image\s*(\d)>")
LETTER_OR_ANSWER = "Answer with the letter of the right choice where there are choices, else in a few words or with a number, between <answer> and </answer>."
SUBJECTS = (
    "Accounting", "Agriculture", "Architecture_and_Engineering", "Art", "Art_Theory", "Basic_Medical_Science", "Biology", "Chemistry",
    "Clinical_Medicine", "Computer_Science", "Design", "Diagnostics_and_Laboratory_Medicine", "Economics", "Electronics",
    "Energy_and_Power", "Finance", "Geography", "History", "Literature", "Manage", "Marketing", "Materials", "Math",
    "Mechanical_Engineering", "Music", "Pharmacy", "Physics", "Psychology", "Public_Health", "Sociology",
)  # fmt: skip
"""Subsets of MMMU on the hub."""


def interleaved(text: str, row: Row) -> Any:
    """A question in which <image 1> and its like are replaced by the row's `image_1`, each where it is named first; those that no mark
    names come before. ValueError for a mark without a picture."""
    named = list(dict.fromkeys(IMAGE.findall(text)))
    lacking = [number for number in named if row.get(f"image_{number}") is None]
    if lacking:
        raise ValueError(
            f"the question names <image {lacking[0]}>, and field 'image_{lacking[0]}' is not there or null."
        )
    others = [str(n) for n in range(1, 8) if row.get(f"image_{n}") is not None and str(n) not in named]
    shown: set[str] = set()

    def mark(found: re.Match[str]) -> str:
        again = found[1] in shown
        shown.add(found[1])
        return f"(image {found[1]})" if again else "<image>"

    marked = "<image>" * len(others) + IMAGE.sub(mark, text)
    images = [row[f"image_{number}"] for number in [*others, *named]]
    return asked(marked, only(row, images=images)) if images else asked(text, only(row))


def mmmu_row(row: Row, config: TaskConfig) -> Example:
    """Fields `question`, `options` (a list, or the text of one), `question_type`, `answer`, and `image_1` to `image_7`.

    The target is {"letter": "B"} of a choice, {"answers": [...]} of an open question.
    """
    options, answer = _listed(row.get("options") or []), field(row, "answer")
    question = text_field(row, "question").strip()
    if str(field(row, "question_type")) == "open":
        right = [str(one).strip() for one in _listed(answer)]
        if not right or not all(right):
            raise ValueError(
                f"field 'answer' is {answer!r:.60}; an open question needs an answer, or a list of them."
            )
        return Example(interleaved(question, row), {"answers": right})
    known = "ABCDEFGHIJ"[: len(options)]
    if len(options) < 2 or str(answer).strip() not in [*known]:
        raise ValueError(
            f"field 'answer' is {answer!r:.40}; it must be the letter of one of the {len(options)} options."
        )
    return Example(interleaved(f"{question}\n{choices(options)}", row), {"letter": str(answer).strip()})


def _listed(value: Any) -> list[Any]:
    """A list, from a list or from the text of one; anything else alone in a list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            return [value]
    return list(value) if isinstance(value, list | tuple) else [value]


def mmmu(option: str) -> Task:
    """Questions with pictures in 30 subjects of college, choices and open ones (Yue et al. 2023, https://arxiv.org/abs/2311.16502), the
    validation split; mmmu:Accounting is one subject."""
    if option and option not in SUBJECTS:
        raise ValueError(
            f"task 'mmmu:{option}': there are mmmu for all subjects, and mmmu: with one of {', '.join(SUBJECTS)}."
        )
    name = f"mmmu:{option}" if option else "mmmu"
    places = [
        Place(f"mmmu/{subject}.jsonl", f"MMMU/MMMU:{subject}", "validation", mmmu_row)
        for subject in ([option] if option else SUBJECTS)
    ]
    load = from_places(name, [], places, instruction=LETTER_OR_ANSWER, no_train=NO_TRAIN)
    return Task(name, load, {"choice_or_open": 1.0}, mmmu_gold, extract=_letter_or_words, max_tokens=1024)


def mmmu_gold(record: Record) -> str:
    """The letter, or the first right answer, in <answer> tags."""
    return f"<answer>{record.target.get('letter') or record.target['answers'][0]}</answer>"


def _letter_or_words(answer: str) -> str:
    return letter(answer) or plain_words(answer)


def mmau_row(row: Row, config: TaskConfig) -> Example:
    """Fields `audio_id` (on the hub `context`, the sound itself), `question` (or `instruction`), `choices`, and `answer`, which is one of
    them. The target is {"answer": ..., "choices": [...]}."""
    options, answer = [str(one) for one in field(row, "choices")], text_field(row, "answer").strip()
    if answer not in [one.strip() for one in options]:
        raise ValueError(
            f"field 'answer' is {answer!r:.60}, which is none of the choices: {', '.join(options)}."
        )
    question = text_field(row, "question" if "question" in row else "instruction").strip()
    sound = field(row, "audio_id" if "audio_id" in row else "context")
    return Example(
        asked(f"{question}\n{choices(options)}", only(row, audio=sound)),
        {"answer": answer, "choices": options},
    )


def mmau(option: str) -> Task:
    """Choices about sounds, speech and music (Sakshi et al. 2024, https://arxiv.org/abs/2410.19168), test-mini; mmau:music is one kind. An
    answer is right if it has the words of the right choice and none that only others have, as published."""
    kinds = ("sound", "speech", "music")
    if option and option not in kinds:
        raise ValueError(
            f"task 'mmau:{option}': there are mmau, {', '.join(f'mmau:{kind}' for kind in kinds)}."
        )
    place = Place("mmau/mmau-test-mini.json", "gamma-lab-umd/MMAU-test-mini", "test", mmau_row)
    if option:
        place = replace(
            place,
            keep=lambda row: (
                (row.get("task") or dict(row.get("other_attributes") or {}).get("task")) == option
            ),
        )
    name = f"mmau:{option}" if option else "mmau"
    load = from_places(name, [], [place], instruction=UNCHANGED, no_train=NO_TRAIN)
    return Task(
        name,
        load,
        {"choice_words": 1.0},
        lambda record: f"<answer>{record.target['answer']}</answer>",
        extract=plain_words,
    )


def video_mme_row(row: Row, config: TaskConfig) -> Example:
    """Fields `videoID`, `question`, `options` ("A. An apple") and `answer`, a letter; the clip is data/VIDEOID.mp4 beside the rows."""
    options, answer = [str(one).strip() for one in field(row, "options")], text_field(row, "answer").strip()
    if answer not in [*"ABCDEFGHIJ"[: len(options)]]:
        raise ValueError(
            f"field 'answer' is {answer!r:.40}; it must be the letter of one of the {len(options)} options."
        )
    bare = [
        re.sub(rf"^{name}[.)]\s*", "", option) for name, option in zip("ABCDEFGHIJ", options, strict=False)
    ]
    clip = row.get("video") or f"data/{text_field(row, 'videoID')}.mp4"
    return Example(
        asked(f"{text_field(row, 'question').strip()}\n{choices(bare)}", only(row, video=clip)), answer
    )


def video_mme(option: str) -> Task:
    """Choices about clips of 11 seconds to an hour (Fu et al. 2024, https://arxiv.org/abs/2405.21075), without subtitles;
    video_mme:short, :medium or :long is one length. The clips are one's own copies, since the hub has them in archives."""
    lengths = ("short", "medium", "long")
    if option and option not in lengths:
        raise ValueError(
            f"task 'video_mme:{option}': there are video_mme, {', '.join(f'video_mme:{one}' for one in lengths)}."
        )
    place = Place("video_mme/test.parquet", "", "", video_mme_row)
    if option:
        place = replace(place, keep=lambda row: row.get("duration") == option)
    name = f"video_mme:{option}" if option else "video_mme"
    load = from_places(name, [], [place], instruction=LETTER, no_train=NO_TRAIN)
    return Task(name, load, {"choice": 1.0}, tagged_gold, extract=letter)


TASKS: Mapping[str, Callable[[str], Task]] = {"mmau": mmau, "mmmu": mmmu, "video_mme": video_mme}
