"""The built-in tasks on their real data: LIGHTRFT_DATA=FOLDER pytest tests/e2e/test_tasks_on_real_data.py"""

import json
import os
from pathlib import Path

import pytest

from lightrft.config import RewardConfig, TaskConfig
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.rewards.math import math
from lightrft.tasks.table import load_task

DATA = os.environ.get("LIGHTRFT_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="set LIGHTRFT_DATA to the folder with gsm8k/, math500/, ...")

SPLITS = [
    ("gsm8k", "train", 7473),
    ("gsm8k", "evaluate", 1319),
    ("aime", "train", 975),
    ("aime", "evaluate", 60),
    ("aime:2024", "evaluate", 30),
    ("aime:2025", "evaluate", 30),
    ("svamp", "evaluate", 1000),
    ("math", "evaluate", 500),
]
MATH_TRAIN = ("math", "train", 7470)


def check(name, split):
    task = load_task(name)
    records = task.load(split, TaskConfig(), DATA, 0)
    with RewardRunner({task.name: task.rewards}, RewardConfig(workers=0)) as judge:
        return check_gold(name, records, task.gold, judge)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "split", "size"), [*SPLITS, MATH_TRAIN])
def test_every_gold_answer_scores_full_marks_and_hardly_any_other(name, split, size):
    report = check(name, split)
    assert report.ok, str(report)
    assert report.checked == size
    assert report.wrong_score < 0.01


@pytest.mark.parametrize(
    ("name", "split"), [("gsm8k", "evaluate"), ("math", "evaluate"), ("aime", "evaluate")]
)
def test_no_evaluation_question_is_in_training(name, split):
    def questions(part):
        return {
            "".join(r.messages[-1]["content"].split())
            for r in load_task(name).load(part, TaskConfig(), DATA, 0)
        }

    assert not questions("train") & questions("evaluate")


def test_the_written_solutions_of_gsm8k_score_full_marks():
    rows = [json.loads(line) for line in (Path(DATA) / "gsm8k/test.jsonl").read_text().splitlines()]
    assert all(math(row["answer"], row["answer"].split("####")[1]) == 1.0 for row in rows)


def test_the_written_solutions_of_math_500_score_full_marks():
    rows = [json.loads(line) for line in (Path(DATA) / "math500/test.jsonl").read_text().splitlines()]
    assert all(math(row["solution"], row["answer"]) == 1.0 for row in rows)
