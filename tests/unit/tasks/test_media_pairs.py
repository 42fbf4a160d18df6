"""Pairs of media, and of texts about them: right by the data, and nothing to be had by looking at one side alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from lightrft.config import TaskConfig
from lightrft.tasks.media_pairs import two_answers, two_media
from lightrft.tasks.table import load_task

REAL = Path(__file__).resolve().parents[4] / "shared/data"
ROWS = [
    (
        f"{n}",
        {"question": f"{'Shape' if n % 2 else 'Colour'}?", "target": str(n // 2 % 3), "image": f"{n}.png"},
    )
    for n in range(24)
]
TARGET = {row["image"]: row["target"] for _, row in ROWS}


def source(side):
    return side[0]["content"][0]["image"]


def test_two_answers_are_the_right_one_and_that_of_another_picture():
    rows = [row for _, row in two_answers(ROWS, random.Random(0))]
    assert len(rows) == 24
    for row in rows:
        picture, asked = row["prompt"][0]["content"]
        assert row["chosen"] == TARGET[picture["image"]] != row["rejected"]
        assert asked["text"] in ("Shape?", "Colour?")
    assert (
        Counter(row["chosen"] for row in rows)
        == Counter(row["rejected"] for row in rows)
        == {"0": 8, "1": 8, "2": 8}
    )


def test_two_pictures_are_one_that_fits_the_text_and_one_that_does_not_and_each_is_better_once_and_worse_once():
    rows = [row for _, row in two_media(ROWS, random.Random(0))]
    for row in rows:
        question, answer = row["prompt"].split(" The answer: ")
        assert TARGET[source(row["chosen"])] == answer.rstrip(".") != TARGET[source(row["rejected"])]
        assert all(
            (int(source(row[s]).removesuffix(".png")) % 2 == 1) == (question == "Shape?")
            for s in ("chosen", "rejected")
        )
    for side in ("chosen", "rejected"):
        assert Counter(source(row[side]) for row in rows) == dict.fromkeys(TARGET, 1)


def test_spoken_digits_keep_the_split_of_the_data_set(tmp_path):
    (tmp_path / "fsdd").mkdir()
    lines = [{"audio": f"{d}{s}.wav", "digit": d, "split": s} for d in (4, 7) for s in ("train", "test")]
    (tmp_path / "fsdd/fsdd.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = load_task("spoken_digits_pairs")
    (one, other) = task.load("evaluate", TaskConfig(), str(tmp_path), 0)
    texts = {record.messages[0]["content"] for record in (one, other)}
    assert texts == {f"Which digit is said? The answer: {d}." for d in ("four", "seven")}
    files = [Path(side["messages"][0]["content"][0]["audio"]).name for side in one.target]
    assert files == (
        ["4test.wav", "7test.wav"] if "four" in one.messages[0]["content"] else ["7test.wav", "4test.wav"]
    )
    with pytest.raises(ValueError, match="the better response is a medium"):
        task.gold(one)
    answers = load_task("spoken_digits_pairs:answers")
    assert {answers.gold(r) for r in answers.load("train", TaskConfig(), str(tmp_path), 0)} == {
        "four",
        "seven",
    }


def test_options_and_data_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"there are nlvr_pairs and nlvr_pairs:answers"):
        load_task("nlvr_pairs:words")
    with pytest.raises(ValueError, match=r"task 'nlvr_pairs' has no hub data set. Set data=FOLDER"):
        load_task("nlvr_pairs").load("train", TaskConfig(), "", 0)


@pytest.mark.parametrize(
    ("name", "train", "held"), [("nlvr_pairs", 771, 258), ("spoken_digits_pairs", 200, 200)]
)
def test_no_medium_of_the_real_data_is_in_both_splits(name, train, held):
    if not (REAL / "nlvr").is_dir() or not (REAL / "fsdd").is_dir():
        pytest.skip(f"{REAL / 'nlvr'} or {REAL / 'fsdd'} is not there")
    seen = []
    for split, count in (("train", train), ("evaluate", held)):
        found = load_task(name).load(split, TaskConfig(), str(REAL), 0)
        assert len(found) == count
        parts = [side["messages"][0]["content"][0] for record in found for side in record.target]
        seen.append({str(part[part["type"]]) for part in parts})
    assert not seen[0] & seen[1]
