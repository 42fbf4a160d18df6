"""Several tasks evaluated together are what each is alone."""

import json

import pytest

from lightrft import cli
from lightrft.cli.commands import AskedEvaluation
from lightrft.cli.loading import load
from lightrft.commands.evaluate import evaluate

TWICE = """
from lightrft.tasks.table import Records, Task
from lightrft.types import Record

def load(split, options, data, seed):
    return Records([Record(f"quiz/{n}", [{"role": "user", "content": str(n)}], str(n), SOURCE) for n in range(4)])

SOURCE = "quiz"
first = Task("quiz", load, {"math": 1.0}, lambda record: str(record.target))
second = Task("quiz", load, {"length": 1.0}, lambda record: str(record.target))
other = Task("other", load, {"math": 1.0}, lambda record: str(record.target))
"""


def asked(*flags):
    return load("evaluate", [*flags, "--model.path", "random:llama", "--strategy.device", "cpu"])


def test_each_task_gives_its_answers_the_room_it_says(tmp_path):
    options = ["--evaluate.limit", "6", "--tasks.evaluate", "tiny", "1"]
    alone = evaluate(asked("--run", str(tmp_path / "alone"), *options))
    both = evaluate(
        asked("--run", str(tmp_path / "both"), *options, "gsm8k", "1", "--data", str(rows(tmp_path)))
    )
    assert both["tiny"] == alone["tiny"]
    assert both["gsm8k"]["mean_length"] > 20


def rows(folder):
    (folder / "gsm8k").mkdir()
    (folder / "gsm8k" / "test.jsonl").write_text(
        json.dumps({"question": "1 + 1?", "answer": "2 #### 2"}) + "\n"
    )
    return folder


def test_tasks_of_one_name_are_refused(tmp_path):
    (tmp_path / "two.py").write_text(TWICE)
    names = [f"{tmp_path}/two.py:first", "1", f"{tmp_path}/two.py:second", "1"]
    with pytest.raises(ValueError, match=r"two\.py:first and .*two\.py:second are both called 'quiz'"):
        evaluate(asked("--run", str(tmp_path / "run"), "--tasks.evaluate", *names))


def test_a_record_of_another_source_is_refused_at_load(tmp_path):
    (tmp_path / "two.py").write_text(TWICE)
    with pytest.raises(ValueError, match=r"task 'other', evaluate: its record quiz/0 has source='quiz'"):
        evaluate(asked("--run", str(tmp_path / "run"), "--tasks.evaluate", f"{tmp_path}/two.py:other", "1"))


def test_the_task_that_is_named_is_not_forgotten():
    with pytest.raises(ValueError, match=r"lightrft evaluate svamp, but tasks\.evaluate names only tiny"):
        AskedEvaluation.of(["svamp", "--tasks.evaluate", "tiny", "1"])
    found = AskedEvaluation.of(["svamp", "--tasks.evaluate", "tiny", "1", "svamp", "2"])
    assert found.config.tasks.evaluate == {"tiny": 1.0, "svamp": 2.0}


def test_check_and_fine_tuning_refuse_such_a_record_as_well(tmp_path, capsys):
    (tmp_path / "two.py").write_text(TWICE)
    task = f"{tmp_path}/two.py:other"
    assert cli.main(["check", "tiny", "--tasks.train", task, "1", "--tasks.evaluate", task, "1"]) != 0
    assert "its record quiz/0 has source='quiz'" in "".join(capsys.readouterr())
    assert cli.main(["sft", "sft_tiny", "--tasks.train", task, "1", "--run", str(tmp_path / "run")]) == 2
    assert "its record quiz/0 has source='quiz'" in "".join(capsys.readouterr())
