"""Tasks that need no data pass the checks of tasks, and each check can fail."""

from dataclasses import replace

import pytest

from lightrft.tasks.base import Records, Task
from lightrft.tasks.table import load_task
from lightrft.testing import check_task
from lightrft.types import Message, Record


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_a_built_in_task_does_all(name):
    found = check_task(load_task(name), limit=40)
    assert found.ok, f"{name}\n{found}"


def record(n, **changes):
    made = Record(f"double/{n}", [Message(role="user", content=f"Double {n}.")], str(2 * n), "double")
    return replace(made, **changes)


def double(change=lambda split, n: record(n), **fields):
    def load(split, config, data, seed):
        numbers = range(10) if split == "train" else range(10, 14)
        return Records([change(split, n) for n in numbers])

    defaults = {"rewards": {"number": 1.0}, "gold": lambda r: f"It is {r.target}."}
    return Task(name="double", load=load, extract=lambda text: text, **(defaults | fields))


def test_a_task_that_does_all_lacks_nothing():
    assert check_task(double()).lacking == {}


def lacking(*args, **fields):
    return check_task(double(*args, **fields)).lacking


def test_an_empty_split_is_told():
    task = replace(double(), load=lambda split, config, data, seed: Records())
    assert "no record in the split 'train'" in check_task(task).lacking["every split has records"]


def test_ids_that_are_not_unique_and_a_wrong_source_are_told():
    name = "ids are unique and the source is the name of the task"
    assert "10 records with the id 'one'" in lacking(lambda split, n: record(n, id="one"))[name]
    assert "is of 'triple'" in lacking(lambda split, n: record(n, source="triple"))[name]


def test_a_question_that_the_assistant_ends_is_told():
    said = [Message(role="assistant", content="Hello.")]
    found = lacking(lambda split, n: record(n, messages=[*record(n).messages, *said]))
    assert found.keys() == {"questions are messages that the assistant answers"}


def test_records_by_lot_are_told():
    draws = iter(range(1000))
    found = lacking(lambda split, n: record(n, messages=[Message(role="user", content=f"{next(draws)}")]))
    assert found.keys() == {"the same seed gives the same records"}


def test_a_question_in_both_splits_is_told():
    found = lacking(lambda split, n: record(n % 10))
    assert found.keys() == {"no question is in both splits"}


def test_a_reward_that_refuses_the_gold_answer_or_takes_any_is_told(tmp_path):
    name = "gold answers get full marks and those to other questions do not"
    assert "0 of 14 gold answers score full marks" in lacking(gold=lambda r: "I do not know.")[name]
    blind = tmp_path / "blind.py"
    blind.write_text("def one(answer):\n    return 1.0\n")
    assert "those to other prompts score 1.000" in lacking(rewards={f"{blind}:one": 1.0})[name]
    assert "it has no rewards" in lacking(rewards={})[name]


def test_a_gold_answer_that_no_vote_would_count_is_told():
    task = replace(double(), extract=lambda text: "")
    assert check_task(task).lacking.keys() == {"a vote counts the gold answer"}
