"""A run's saved responses as rows: what is in them, what is left out, which steps."""

from dataclasses import replace

import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.preferences import best, best_worst, graded
from lightrft.datasets.sources import BadRecords, is_file, read
from lightrft.runs.trajectories import save
from lightrft.tasks.table import load_task
from lightrft.testing import tiny_trajectories

SKIP = BadRecords("skip")


def said(answers, *, step, group=0, **changes):
    """Responses to one question as a step has them: answer -> reward."""
    asked = replace(
        tiny_trajectories([(3, [2])])[0].prompt,
        id=f"q{step}",
        messages=[{"role": "user", "content": f"{step} + 2?"}],
        target=4,
    )
    made = tiny_trajectories([(3, [2] * len(answers))])
    return [
        replace(t, prompt=asked, group=group, answer=text, reward=reward, **changes)
        for t, (text, reward) in zip(made, answers.items(), strict=True)
    ]


@pytest.fixture
def run(tmp_path):
    """Three steps; the second has two ranks and responses that are no rows: cut off, taken over, without a reward, without text, to a
    held-out prompt, as runs of sft have."""
    save(tmp_path, 1, said({"4": 1.0, "5": 0.0}, step=1))
    save(
        tmp_path,
        2,
        [
            *said({"6": 0.5, "": 1.0, " \n": 0.0}, step=2),
            *said({"7": 1.0}, step=2, finish="length"),
            *said({"4": 1.0}, step=1, origin="replayed"),
            *said({"10": 1.0}, step=2, group=9, use="held_out"),
        ],
    )
    save(tmp_path, 2, [*said({"8": 0.25, "9": float("nan")}, step=2, group=1)], rank=1)
    save(tmp_path, 3, said({"1": 0.0, "2": 0.0}, step=3))
    return tmp_path


def test_a_group_is_a_row_of_its_finished_responses_and_their_rewards(run):
    rows = [row for _, row in read(str(run), "train", SKIP)]
    assert [(row["responses"], row["grades"]) for row in rows] == [
        (["4", "5"], [1.0, 0.0]),
        (["6"], [0.5]),
        (["8"], [0.25]),
        (["1", "2"], [0.0, 0.0]),
    ]
    assert rows[0]["prompt"] == [{"role": "user", "content": "1 + 2?"}]
    assert rows[0]["target"] == 4
    assert rows == [row for _, row in read(str(run / "trajectories"), "test", SKIP)]
    assert is_file(str(run))


def test_what_is_left_out_is_counted_and_logged(run, caplog):
    with caplog.at_level("INFO", logger="lightrft"):
        list(read(str(run), "", SKIP))
    assert (
        f"{run}: 6 saved responses are read; left out: 2 without text, 1 cut off at the limit of tokens, 1 taken over from another step, "
        "1 to held-out prompts, 1 without a reward"
    ) in caplog.messages


@pytest.mark.parametrize(
    ("split", "answers"), [("1", "4"), ("1-1", "4"), ("2-", "681"), ("2-9", "681"), ("3", "1")]
)
def test_a_split_of_a_run_is_steps(run, split, answers):
    assert "".join(row["responses"][0] for _, row in read(str(run), split, SKIP)) == answers


@pytest.mark.parametrize(
    ("split", "message"), [("half", "is steps, like 1-8, 9- or 3, not 'half'"), ("4-", "it has steps 1 to 3")]
)
def test_a_split_that_names_no_saved_step_is_refused(run, split, message):
    with pytest.raises(ValueError, match=message):
        list(read(str(run), split, SKIP))


def test_a_row_of_another_file_is_named(run):
    (run / "trajectories" / "step-000001.parquet").unlink()
    (run / "trajectories" / "step-000001.jsonl").write_text('{"prompt": "4?"}\n')
    with pytest.raises(ValueError, match=r"step-000001.jsonl:1: no response that a run has saved .*origin"):
        list(read(str(run), "1", BadRecords()))


def test_a_conversation_of_several_turns_is_refused_or_counted(tmp_path):
    turns = [{"role": "assistant", "content": "look"}, {"role": "tool", "content": "4"}]
    save(tmp_path, 1, [*said({"4": 1.0, "5": 0.0}, step=1), *said({"6": 0.0}, step=1, said=turns)])
    with pytest.raises(ValueError, match="conversations of several turns are not read") as caught:
        list(read(str(tmp_path), "1", BadRecords()))
    assert "Name steps of a run without an environment" in str(caught.value)
    assert "no response that a run has saved" not in str(caught.value)
    skip = BadRecords("skip")
    ((_, row),) = read(str(tmp_path), "1", skip)
    assert (row["responses"], skip.skipped) == (["4", "5"], 1)


def test_responses_in_one_turn_to_prompts_that_told_of_tools_are_refused(run):
    """A resume changed the settings after step 2: until then there were tools, which are not among the messages."""
    (run / "config-until-step-000002.yaml").write_text(
        "environment: {name: '', tools: [calc], announce: true}"
    )
    (run / "config.yaml").write_text("environment: {name: '', tools: [calc], announce: false}")
    with pytest.raises(ValueError, match=r"a run with environment.tools=\['calc'\] are not read"):
        list(read(str(run), "1", BadRecords()))
    skip = BadRecords("skip")
    assert [row["responses"] for _, row in read(str(run), "", skip)] == [["1", "2"]]
    assert skip.skipped == 4
    (run / "config.yaml").write_text("environment: {name: 'games.py:Game', announce: false}")
    with pytest.raises(ValueError, match="environment.name=games.py:Game"):
        list(read(str(run), "3", BadRecords()))


def test_a_row_is_graded_by_its_rewards_and_its_best_response_is_learned(run):
    (_, row), *_, (_, equal) = read(str(run), "", SKIP)
    assert [one["grades"] for one in graded(row, TaskConfig()).target] == [{"": 1.0}, {"": 0.0}]
    assert best(row, TaskConfig()) == (row["prompt"], [{"role": "assistant", "content": "4"}])
    with pytest.raises(ValueError, match="no response is better than another"):
        best(equal, TaskConfig())


def test_the_best_is_the_first_with_the_highest_grade_known():
    row = {"prompt": "2 + 2?", "responses": ["5", "4", "four", "3"], "grades": [0.0, 1.0, 1.0, None]}
    assert best(row, TaskConfig()).target == [{"role": "assistant", "content": "4"}]


def test_best_and_worst_of_a_row_are_a_pair_and_what_nobody_graded_is_neither():
    grades = [0.5, None, 1.0, 0.25, 1.0, 0.25]
    row = {
        "prompt": "2 + 2?",
        "responses": ["4.0", "four", "4", "5", "2 + 2", "3"],
        "grades": {"rated": grades},
    }
    found = best_worst(row, TaskConfig()).target
    assert [(one["messages"][0]["content"], one["grades"]) for one in found] == [
        ("4", {"rated": 1.0}),
        ("5", {"rated": 0.25}),
    ]
    with pytest.raises(ValueError, match="no response is better than another"):
        best_worst({**row, "grades": [1, None, 1, 1, 1, 1]}, TaskConfig())
    both = {**row, "grades": {"a": grades, "b": grades}}
    form = TaskConfig(format="lightrft.datasets.preferences:best_worst")
    with pytest.raises(ValueError, match="field 'grades' has a, b, and `best_worst` goes by one of them"):
        best_worst(both, form)


def test_training_and_evaluation_may_take_different_steps_of_a_run_and_no_step_both(run):
    form = "lightrft.datasets.preferences:graded"
    config = TaskConfig(
        train_file=str(run), train_split="1-2", evaluate_file=str(run), evaluate_split="3", format=form
    )
    load = load_task("file").load
    assert [len(load(split, config, "", 0)) for split in ("train", "evaluate")] == [3, 1]
    with pytest.raises(ValueError, match=r"both take step 2. Name steps for each"):
        load("train", replace(config, evaluate_split="2-"), "", 0)
    with pytest.raises(ValueError, match=r"both take step 1"):
        load("train", replace(config, train_split="train", evaluate_split="test"), "", 0)
