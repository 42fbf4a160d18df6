"""Benchmarks as their authors publish the rows; the rows here are made up in that form."""

import csv
import json

import pytest

from lightrft.config import RewardConfig, TaskConfig
from lightrft.config.suites import SUITES, tasks_of
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.tasks.benchmarks import TASKS, gpqa_row
from lightrft.tasks.table import load_task

ROWS = {
    "mmlu": (
        "mmlu/test.jsonl",
        {"question": "Two and two?", "subject": "arithmetic", "choices": ["3", "4", "5", "6"], "answer": 1},
        "B",
    ),
    "mmlu:law": (
        "mmlu/test.jsonl",
        {"question": "Who?", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 3},
        "D",
    ),
    "mmlu_pro": (
        "mmlu_pro/test.jsonl",
        {
            "question_id": 70,
            "question": "Which?",
            "options": list("abcdefghij"),
            "answer": "J",
            "answer_index": 9,
            "category": "math",
        },
        "J",
    ),
    "mmmlu:DE_DE": (
        "mmmlu/DE_DE.jsonl",
        {
            "Question": "Zwei und zwei?",
            "A": 3,
            "B": 4,
            "C": 5,
            "D": 6,
            "Answer": "B",
            "Subject": "abstract_algebra",
        },
        "B",
    ),
    "amc23": ("amc23/test.jsonl", {"id": 0, "question": "How many?", "answer": "27.0"}, "27"),
    "olympiad_bench": (
        "olympiad_bench/OE_TO_maths_en_COMP.jsonl",
        {
            "id": 1606,
            "question": "Find $x$.",
            "context": None,
            "final_answer": ["$\\frac{1}{2}$"],
            "is_multiple_answer": False,
            "unit": None,
            "answer_type": "Numerical",
            "error": None,
        },
        "\\frac{1}{2}",
    ),
}
GPQA = {
    "Question": "Which decays first?",
    "Correct Answer": "the muon\n",
    "Incorrect Answer 1": "the proton",
    "Incorrect Answer 2": "the electron",
    "Incorrect Answer 3": "none",
}


def store(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluated(name, folder):
    return load_task(name).load("evaluate", TaskConfig(), str(folder), 0)


def scores(task, records, answers):
    with RewardRunner({task.name: task.rewards}, RewardConfig(workers=0)) as judge:
        return check_gold(task.name, records, answers, judge)


@pytest.mark.parametrize("name", ROWS)
def test_published_rows_are_read_and_their_gold_answers_alone_get_full_marks(name, tmp_path):
    file, row, target = ROWS[name]
    store(tmp_path / file, row)
    records, task = evaluated(name, tmp_path), load_task(name)
    assert [record.target for record in records] == [target]
    assert scores(task, records, task.gold).ok
    assert not scores(task, records, lambda _record: "The answer is \\boxed{A} or 28, <answer>A</answer>").ok
    with pytest.raises(ValueError, match="it is a test set"):
        task.load("train", TaskConfig(), str(tmp_path), 0)


def test_choices_have_letters_and_what_is_asked_stands_below(tmp_path):
    store(tmp_path / ROWS["mmlu"][0], ROWS["mmlu"][1])
    (record,) = evaluated("mmlu", tmp_path)
    assert record.messages[0]["content"] == (
        "Two and two?\n(A) 3\n(B) 4\n(C) 5\n(D) 6\nAnswer with the letter of the right choice, between <answer> and </answer>."
    )


def test_a_subject_of_mmlu_leaves_out_the_others(tmp_path):
    store(tmp_path / "mmlu/test.jsonl", ROWS["mmlu"][1], ROWS["mmlu:law"][1])
    assert [r.target for r in evaluated("mmlu:law", tmp_path)] == ["D"]
    assert len(evaluated("mmlu", tmp_path)) == 2


def test_gpqa_is_read_from_its_table_and_its_right_choice_has_no_usual_place(tmp_path):
    path = tmp_path / "gpqa/gpqa_diamond.csv"
    path.parent.mkdir()
    rows = [GPQA | {"Question": f"Question {n}?"} for n in range(200)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(GPQA))
        writer.writeheader()
        writer.writerows(rows)
    records, task = evaluated("gpqa_diamond", tmp_path), load_task("gpqa_diamond")
    assert scores(task, records, task.gold).ok
    for record in records:
        assert f"({record.target}) the muon\n" in record.messages[0]["content"] + "\n"
    counts = [sum(r.target == name for r in records) for name in "ABCD"]
    assert min(counts) > 30
    assert gpqa_row(rows[0], TaskConfig()) == gpqa_row(dict(rows[0]), TaskConfig())


def test_olympiad_bench_leaves_out_what_one_comparison_cannot_judge(tmp_path):
    file, row, _ = ROWS["olympiad_bench"]
    others = [{"is_multiple_answer": True}, {"error": "1e-3"}, {"answer_type": "Interval"}]
    store(tmp_path / file, row, *(row | other for other in others), row | {"context": "Let $x>0$."})
    found = evaluated("olympiad_bench", tmp_path)
    assert [r.messages[0]["content"].split("\n")[0] for r in found] == ["Find $x$.", "Let $x>0$."]


@pytest.mark.parametrize(
    ("name", "broken", "told"),
    [
        ("mmlu", {"answer": 4}, "it must number one of the 4 choices"),
        ("mmlu", {"answer": True}, "it must number one of the 4 choices"),
        ("mmlu", {"choices": "abcd"}, "between 2 and 10 choices"),
        ("mmlu_pro", {"answer": "K"}, "a letter from A to J"),
        ("mmmlu:DE_DE", {"Answer": "E"}, "a letter from A to D"),
        ("olympiad_bench", {"final_answer": ["1", "2"]}, "a list with one answer"),
    ],
)
def test_a_row_that_no_answer_could_fit_is_named(name, broken, told, tmp_path):
    file, row, _ = ROWS[name]
    store(tmp_path / file, row | broken)
    with pytest.raises(ValueError, match=f":1: .*{told}"):
        evaluated(name, tmp_path)


@pytest.mark.parametrize("name", ["mmmlu", "mmmlu:XX", "amc23:1", "gpqa_diamond:main", "mmlu_pro:law"])
def test_options_that_are_not_there_are_refused(name):
    with pytest.raises(ValueError, match="task"):
        load_task(name)


def test_suites_name_tasks_that_are_there():
    for suite, names in SUITES.items():
        assert tasks_of(suite) == list(names)
        assert [load_task(name).name for name in names] == list(names)
    assert tasks_of("gsm8k,suite:words,mmlu") == ["gsm8k", "svamp", "mmlu"]
    assert set(TASKS) & {name for names in SUITES.values() for name in names}
    with pytest.raises(ValueError, match="no suite named 'suite:wrods'"):
        tasks_of("suite:wrods")
    with pytest.raises(ValueError, match="names a task that is empty"):
        tasks_of("gsm8k,")
