"""Answers that say nothing, beside wrong ones: what a judge gives them."""

import pytest

from lightrft.config import JudgeConfig, RewardConfig
from lightrft.console.pairs import fools_table, fools_told
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.comparing import ComparingJudge
from lightrft.rewards.fools import FOOLS, judged_answer, spread, try_fools
from lightrft.rewards.models import Output
from lightrft.testing import tiny_processor
from lightrft.types import Prompt
from lightrft.workers.pool import Failure
from tests.unit.rewards.test_comparing import Deciding

WRONG = [
    judged_answer(n, Prompt(f"q{n}", [], [{"role": "user", "content": "2 + 2?"}], "4", "test"), text)
    for n, text in enumerate(["5", "22"])
]


def tried(model, weights=None, counted=dict):
    runner = RewardRunner({"test": weights or {"judge": 1.0}}, RewardConfig(workers=0))
    runner.models = {"judge": Output(model, counted=counted)}
    return try_fools(WRONG, runner)


def test_an_answer_that_gets_more_than_a_wrong_one_is_named_with_both_scores():
    marks = {":": 0.9, "Solution": 0.3}
    found = tried(lambda answers: [marks.get(a.answer, 0.4 if a.answer == "5" else 0.2) for a in answers])
    assert [one.text for one in found["judge"]] == list(FOOLS)
    by_text = {one.text: one for one in found["judge"]}
    assert (by_text[":"].score, by_text[":"].wrong, by_text[":"].prompts) == (0.9, pytest.approx(0.3), 2)
    assert [one.text for one in found["judge"] if one.fools] == [":"]
    told = fools_told("judge", found["judge"])
    assert told.startswith("reward 'judge' gives more to ':' than to a wrong answer")
    lines = fools_table("judge", found["judge"]).splitlines()
    assert lines[2].split() == ["':'", "0.900", "0.300", "2", "gets", "more"]
    assert lines[3].split() == ["'Solution'", "0.300", "0.300", "2"]


def test_a_judge_that_compares_compares_each_with_the_wrong_answer():
    asked = Deciding(lambda one, other, _: f"Answer: {'A' if one == 'Score: 10' or other == ':' else 'B'}")
    config = JudgeConfig(path="policy", against="siblings")
    judge = ComparingJudge(asked, tiny_processor(), config, None)
    found = {one.text: one for one in tried(judge, counted=judge.counted)["judge"]}
    assert (found["Score: 10"].score, found["Score: 10"].wrong) == (1.0, 0.0)
    assert (found[":"].score, found[":"].wrong) == (0.0, 1.0)
    assert {frozenset(pair) & {"5", "22"} for pair in asked.asked} == {frozenset({"5"}), frozenset({"22"})}


def test_what_is_not_judged_is_no_score_and_a_reward_that_only_watches_is_not_tried():
    found = tried(lambda answers: [Failure("no") if a.answer == ":" else 0.5 for a in answers])
    colon = found["judge"][FOOLS.index(":")]
    assert (colon.score, colon.prompts, colon.fools) == (None, 0, False)
    assert "not judged" in fools_table("judge", found["judge"])
    assert tried(lambda answers: [0.0 for _ in answers], {"judge": 0.0, "math": 1.0}) == {}


def test_rows_are_spread():
    assert spread(3) == [0, 1, 2]
    assert spread(80) == [0, 10, 20, 30, 40, 50, 60, 70]
    assert spread(0) == []
