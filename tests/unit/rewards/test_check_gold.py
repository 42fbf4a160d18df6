from lightrft.config import RewardConfig
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.types import Record


def sums(*targets):
    return [
        Record(id=f"sum/{n}", messages=[{"role": "user", "content": "?"}], target=t, source="sums")
        for n, t in enumerate(targets)
    ]


def judge(**rewards):
    return RewardRunner({"sums": rewards}, RewardConfig(workers=0))


def test_right_answers_pass_and_answers_to_other_questions_do_not():
    report = check_gold(
        "sums", sums("1", "2", "3"), lambda record: f"It is {record.target}.", judge(number=1.0)
    )
    assert report.ok
    assert (report.checked, report.wrong_score) == (3, 0.0)
    assert (
        str(report)
        == "sums: 3 of 3 gold answers score full marks; those to other prompts score 0.000 on average."
    )


def test_a_gold_answer_without_full_marks_is_shown():
    report = check_gold("sums", sums("1", "2"), lambda record: "It is 1.", judge(number=1.0, format=0.5))
    assert not report.ok
    assert [f.id for f in report.failures] == ["sum/0", "sum/1"]
    assert report.failures[0].parts == {"number": 1.0, "format": 0.0}
    assert "sum/1: 'It is 1.' for target '2' scored" in str(report)


def test_a_blind_reward_is_found_out_by_answers_to_other_questions(tmp_path):
    (tmp_path / "blind.py").write_text("def kind(answer):\n    return 1.0\n")
    report = check_gold(
        "sums", sums("1", "2"), lambda record: record.target, judge(**{f"{tmp_path}/blind.py:kind": 1.0})
    )
    assert report.ok
    assert report.wrong_score == 1.0


def test_a_task_without_records_is_not_ok():
    assert not check_gold("sums", [], lambda record: "", judge(number=1.0)).ok
