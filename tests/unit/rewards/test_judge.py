import logging
import os
import subprocess
import sys
import time
from math import isnan
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from lightrft.config import RewardConfig
from lightrft.rewards.base import RewardRunner, each, stripped
from lightrft.types import Prompt, Trajectory

FAILING = str(Path(__file__).parent / "failing_rewards.py")
FRAGILE = f"{FAILING}:fragile"


def spoken(answer, group=0, source="sums", target="5"):
    prompt = Prompt(
        id=f"q{group}",
        token_ids=[1, 2],
        messages=[],
        target=target,
        source=source,
        media={"pixels": torch.ones(3)},
    )
    return Trajectory(
        prompt=prompt, group=group, token_ids=[7, 8], mask=[True] * 2, behavior=[0.0] * 2, finish="stop", answer=answer,
        columns={"old": torch.zeros(2)},
    )  # fmt: skip


def inline(rewards, **options):
    return RewardRunner({"sums": rewards}, RewardConfig(workers=0, **options))


@pytest.fixture(scope="module")
def dropping():
    """One worker for many tests; it is replaced whenever a test kills it."""
    with RewardRunner(
        {"sums": {FRAGILE: 1.0}}, RewardConfig(on_failure="drop", timeout_seconds=1.0)
    ) as judge:
        yield judge


def test_rewards_are_weighted_and_added_and_their_parts_kept_unweighted():
    answer = spoken("<answer>5</answer>")
    inline({"math": 2.0, "format": 0.5})([answer])
    assert answer.parts == {"math": 1.0, "format": 0.0}
    assert answer.reward == 2.0


def test_each_task_is_judged_by_its_own_rewards():
    sums, letters = spoken("5"), spoken("B", group=1, source="quiz", target="B")
    RewardRunner({"sums": {"math": 1.0}, "quiz": {"choice": 3.0}}, RewardConfig(workers=0))([sums, letters])
    assert (sums.parts, letters.parts) == ({"math": 1.0}, {"choice": 1.0})
    assert letters.reward == 3.0


def test_a_reward_sees_media_by_name_only():
    answer = spoken("5")
    answer.prompt.messages.append({"role": "user", "content": [{"type": "image", "image": b"pixels"}]})
    seen = stripped(answer).prompt.messages
    assert seen == [{"role": "user", "content": [{"type": "image", "image": "bytes"}]}]


def test_a_task_without_reward_is_refused_at_the_start():
    with pytest.raises(ValueError, match="task 'sums' has no reward. Set rewards.functions"):
        inline({})


def test_a_misspelt_reward_is_refused_before_any_process_starts():
    with pytest.raises(ValueError, match="no reward named 'mth'. Did you mean 'math'"):
        RewardRunner({"sums": {"mth": 1.0}}, RewardConfig())


def test_an_answer_of_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="no reward for responses of task 'quiz'; the judge knows: sums"):
        inline({"math": 1.0})([spoken("5", source="quiz")])


def test_a_reward_sees_only_answers_of_its_own_task_in_one_call():
    judge = RewardRunner(
        {"sums": {f"{FAILING}:call_size": 1.0}, "quiz": {f"{FAILING}:call_size": 1.0}},
        RewardConfig(workers=0),
    )
    answers = [spoken("a"), spoken("b", 1, "quiz"), spoken("c")]
    judge(answers)
    assert [a.reward for a in answers] == [2.0, 1.0, 2.0]


def test_a_reward_sees_no_columns_and_no_media_but_how_long_an_answer_is():
    answers = [spoken("a"), spoken("b")]
    inline({f"{FAILING}:sees": 1.0})(answers)
    assert [a.reward for a in answers] == [2.0, 2.0]
    assert "old" in answers[0].columns


@pytest.mark.parametrize("word", ["nan", "infinite"])
def test_a_value_that_is_not_finite_stops_the_run_naming_reward_and_answer(word):
    with pytest.raises(
        RuntimeError,
        match=rf"(?s)fragile' failed on responses of task 'sums': it returned {word[:3]}.*to q0: '{word}'.*on_failure=drop",
    ):
        inline({FRAGILE: 1.0})([spoken("fine"), spoken(word)])


def test_an_exception_stops_the_run_with_the_place_where_it_was_raised():
    with pytest.raises(
        RuntimeError,
        match=r"(?s)failing_rewards.py.*KeyError: 'no such thing'.*while judging the response 'raise'",
    ):
        inline({FRAGILE: 1.0})([spoken("fine"), spoken("raise")])


def test_a_list_of_the_wrong_length_stops_the_run():
    with pytest.raises(RuntimeError, match="it returned 1 values for 2 responses"):
        inline({f"{FAILING}:short_list": 1.0})([spoken("a"), spoken("b")])


def test_only_failing_answers_are_dropped_and_never_become_zeros(caplog):
    answers = [spoken("a"), spoken("raise"), spoken("abc"), spoken("nan", 1), spoken("b", 1), spoken("c", 1)]
    with caplog.at_level(logging.WARNING, "lightrft"):
        judged = inline({FRAGILE: 1.0}, on_failure="drop")(answers)
    assert [(t.answer, t.reward) for t in judged.kept] == [("a", 1.0), ("abc", 3.0), ("b", 1.0), ("c", 1.0)]
    assert judged.metrics == {"counts/dropped_responses": 2.0, "counts/failed/fragile": 2.0}
    assert isnan(answers[1].reward)
    assert "2 responses without a value (2 of 6 responses are dropped in all)" in caplog.text


def test_a_group_with_one_answer_left_is_dropped_whole():
    judged = inline({FRAGILE: 1.0}, on_failure="drop")(
        [spoken("raise"), spoken("alone"), spoken("single", 1)]
    )
    assert [t.answer for t in judged.kept] == ["single"]
    assert judged.metrics["counts/dropped_responses"] == 2.0
    assert judged.metrics["counts/failed/fragile"] == 1.0


def test_a_reward_over_groups_is_tried_again_by_whole_groups_only():
    answers = [spoken("a"), spoken("b"), spoken("c", 1), spoken("raise", 1), spoken("d", 2)]
    judged = inline({f"{FAILING}:group_size": 1.0}, on_failure="drop")(answers)
    assert [(t.answer, t.reward) for t in judged.kept] == [("a", 2.0), ("b", 2.0), ("d", 1.0)]
    assert judged.metrics["counts/dropped_responses"] == 2.0


def test_nothing_dropped_is_counted_as_zero():
    assert inline({"math": 1.0})([spoken("5")]).metrics == {"counts/dropped_responses": 0.0}


def test_no_answers_give_no_answers():
    assert inline({"math": 1.0})([]).kept == []


def test_rewards_run_in_another_process(tmp_path):
    with RewardRunner({"sums": {f"{FAILING}:process_id": 1.0, "math": 0.0}}, RewardConfig()) as judge:
        answer = spoken("\\boxed{2\\sqrt{3}}", target="\\sqrt{12}")
        judge([answer])
        assert answer.parts["math"] == 1.0
        child = int(answer.parts["process_id"])
        assert child != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_several_workers_share_the_groups_and_keep_them_whole():
    with RewardRunner({"sums": {f"{FAILING}:process_id": 1.0}}, RewardConfig(workers=2)) as judge:
        answers = [spoken("a", group=n // 3) for n in range(12)]
        judge(answers)
    first, second = answers[0].reward, answers[-1].reward
    assert first != second
    assert [a.reward for a in answers] == [first] * 6 + [second] * 6


def test_a_reward_that_hangs_is_killed_and_only_its_answer_dropped(dropping):
    start = time.monotonic()
    judged = dropping([spoken("a"), spoken("hang"), spoken("abc"), spoken("b", 1), spoken("c", 1)])
    assert [(t.answer, t.reward) for t in judged.kept] == [("a", 1.0), ("abc", 3.0), ("b", 1.0), ("c", 1.0)]
    assert judged.metrics == {"counts/dropped_responses": 1.0, "counts/failed/fragile": 1.0}
    assert time.monotonic() - start < 50


def test_a_reward_whose_process_dies_is_replaced(dropping):
    judged = dropping([spoken("die"), spoken("a"), spoken("bc")])
    assert [t.reward for t in judged.kept] == [1.0, 2.0]
    assert dropping([spoken("four")]).kept[0].reward == 4.0


def test_a_hang_stops_the_run_unless_told_to_drop():
    with (
        RewardRunner({"sums": {FRAGILE: 1.0}}, RewardConfig(timeout_seconds=0.5)) as judge,
        pytest.raises(RuntimeError, match="it took longer than rewards.timeout_seconds=0.5 and was killed"),
    ):
        judge([spoken("hang")])


def test_a_reward_that_cannot_be_loaded_is_named():
    judge = RewardRunner({"sums": {f"{FAILING}:fragle": 1.0}}, RewardConfig())
    with judge, pytest.raises(ValueError, match="has no 'fragle'. Did you mean 'fragile'"):
        judge([spoken("a")])


def test_two_rewards_of_the_same_name_keep_their_full_names(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("def score(answer):\n    return 1.0\n")
    names = [f"{tmp_path}/{folder}/mine.py:score" for folder in ("one", "two")]
    answer = spoken("a")
    inline(dict.fromkeys(names, 1.0))([answer])
    assert sorted(answer.parts) == names


def test_a_lifted_reward_can_still_be_called_on_one_answer():
    assert each(lambda answer: len(answer)).function("abc") == 3


def test_the_process_that_runs_rewards_starts_without_torch():
    with RewardRunner({"sums": {f"{FAILING}:torch_loaded": 1.0, "math": 1.0}}, RewardConfig()) as judge:
        answer = spoken("5")
        judge([answer])
    assert answer.parts == {"torch_loaded": 0.0, "math": 1.0}


def test_a_worker_that_is_left_without_being_heard_ends_quietly():
    """A command that judges nothing closes the connection with the worker's word that it is ready unread."""
    connection, child = Pipe()
    worker = subprocess.Popen(
        [sys.executable, "-m", "lightrft.workers.process", str(child.fileno()), str(os.getpid()), "0"],
        pass_fds=[child.fileno()],
        stderr=subprocess.PIPE,
    )
    child.close()
    connection.send(("lightrft.rewards.table:load_values", ["length"]))
    assert connection.poll(60)
    connection.close()
    _, said = worker.communicate(timeout=60)
    assert (worker.returncode, said) == (0, b"")
