"""A judge that compares: which comparisons are asked, and what is made of what it says."""

import itertools
from dataclasses import replace

import pytest

from lightrft.build.judges import check_siblings
from lightrft.config import Config, JudgeConfig, RewardConfig, RolloutConfig
from lightrft.rewards.base import RewardError, RewardRunner
from lightrft.rewards.comparing import ComparingJudge, ring, target_text
from lightrft.rewards.function import Answer, Question
from lightrft.rewards.models import Output
from lightrft.testing import tiny_processor
from lightrft.types import Completion, Prompt, Trajectory
from lightrft.workers.pool import Failure

SIBLINGS = {"against": "siblings"}


def answer(text, group=0, target="4"):
    question = Question(f"q{group}", [{"role": "user", "content": "2 + 2?"}], target, "test")
    return Answer(question, group, [1], text, "stop")


def shown(text):
    """The two answers of a judge's question, in their order."""
    return tuple(text.split(f"[Answer {x}]\n")[1].split("\n\n[")[0] for x in "AB")


class Deciding:
    """An engine that says what `decide` makes of the two answers it is shown, and remembers them."""

    def __init__(self, decide):
        self.decide, self.asked, self.calls = decide, [], 0

    def __call__(self, prompts, sampling):
        self.calls += 1
        processor, found = tiny_processor(), []
        for prompt in prompts:
            pair = shown(processor.text(prompt.token_ids))
            self.asked.append(pair)
            said = [self.decide(*pair, n) for n in range(sampling.n)]
            tokens = [processor.tokenizer.encode(text, add_special_tokens=False) for text in said]
            found.append([Completion(t, [0.0] * len(t), "stop") for t in tokens])
        return found


def longer(one, other, _=0):
    """A verdict for the longer answer."""
    return f"Answer: {'A' if len(one) > len(other) else 'B'}"


def judged(decide, answers, **settings):
    ask = Deciding(decide)
    judge = ComparingJudge(ask, tiny_processor(), JudgeConfig(path="policy", **settings), None)
    return judge(answers), ask, dict(judge.counted())


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("rivals", [1, 2, 3, 7])
def test_a_ring_lets_each_response_meet_the_same_number_of_others_and_none_twice(size, rivals):
    places = list(range(10, 10 + size))
    matches = [(m.one, m.other) for m in ring(places, rivals)]
    assert len({frozenset(pair) for pair in matches}) == len(matches)
    met = {place: sum(place in pair for pair in matches) for place in places}
    assert set(met.values()) == {min(2 * rivals, size - 1)}
    if rivals >= size / 2:
        assert {frozenset(p) for p in matches} == {frozenset(p) for p in itertools.combinations(places, 2)}


def test_each_response_gets_its_win_rate_among_siblings_and_both_orders_are_asked():
    texts = ["1", "22", "333", "4444"]
    found, ask, counted = judged(longer, [answer(t) for t in texts], **SIBLINGS)
    assert found == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert len(ask.asked) == 12
    assert {tuple(reversed(pair)) for pair in ask.asked} == set(ask.asked)
    assert ask.calls == 1
    assert counted == {
        "counts/judge_comparisons": 6, "counts/judge_contradictions": 0, "counts/judge_failed_comparisons": 0,
    }  # fmt: skip


def test_conversations_that_end_alike_are_compared_as_a_whole():
    """A last turn that is the same is no tie where what was said before differs."""

    def talk(first):
        said = [("assistant", first), ("user", "go on"), ("assistant", "so 4")]
        return replace(answer("so 4"), said=[{"role": role, "content": text} for role, text in said])

    found, ask, _ = judged(longer, [talk("add them up"), talk("add")], **SIBLINGS)
    assert found == [1.0, 0.0]
    assert ask.asked[0] == tuple(
        f"Assistant: {x}\nUser: go on\nAssistant: so 4" for x in ("add them up", "add")
    )


def test_groups_are_not_mixed():
    answers = [answer("1"), answer("333", 1), answer("22"), answer("4444", 1)]
    found, ask, _ = judged(longer, answers, **SIBLINGS)
    assert found == [0, 0, 1, 1]
    assert set(ask.asked) == {("1", "22"), ("22", "1"), ("333", "4444"), ("4444", "333")}


def test_a_judge_that_prefers_a_place_gives_half_to_all_and_is_counted():
    found, _, counted = judged(lambda *_: "Answer: A", [answer(t) for t in ("1", "22", "333")], **SIBLINGS)
    assert found == [0.5, 0.5, 0.5]
    assert (counted["counts/judge_comparisons"], counted["counts/judge_contradictions"]) == (3, 3)


def test_the_same_texts_tie_and_are_not_asked_about():
    found, ask, counted = judged(longer, [answer("1"), answer("1 "), answer("333")], **SIBLINGS)
    assert found == [0.25, 0.25, 1.0]
    assert len(ask.asked) == 4
    assert counted["counts/judge_comparisons"] == 2


def test_a_response_is_compared_with_what_is_right():
    answers = [answer("333", target="22"), answer("1", 1, target="22"), answer("22", 2, target="22")]
    found, ask, _ = judged(longer, answers, against="target")
    assert found == [1.0, 0.0, 0.5]
    assert ask.asked == [("333", "22"), ("22", "333"), ("1", "22"), ("22", "1")]
    assert target_text(answer("", target={"a": 1})) == '{"a": 1}'
    assert target_text(answer("", target=[{"role": "assistant", "content": "4"}])) == "4"
    assert target_text(answer("", target=4)) == "4"


def test_a_missing_verdict_is_a_failure_of_those_without_any_other_and_never_a_zero():
    def decide(one, other, _):
        return "I cannot say." if "x" in one + other else longer(one, other)

    found, _, counted = judged(decide, [answer(t) for t in ("1", "22", "x")], **SIBLINGS)
    assert found[:2] == [0.0, 1.0]
    assert isinstance(found[2], Failure)
    assert "named neither A nor B; it said 'I cannot say.'" in found[2].reason
    assert (counted["counts/judge_comparisons"], counted["counts/judge_failed_comparisons"]) == (1, 2)
    (alone,), *_ = judged(longer, [answer("1")], **SIBLINGS)
    assert "no sibling to be compared with" in alone.reason
    (without,), *_ = judged(longer, [answer("1", target=None)], against="target")
    assert "q0 has no target to compare with" in without.reason


def test_several_verdicts_are_averaged_by_order():
    """Answer 1 wins 2 of 4 where it stands first, all 4 where it stands second: (1/2 + 1) / 2."""

    def decide(one, other, n):
        return f"Answer: {'A' if one == '1' and n < 2 else 'B'}"

    settings = {"samples": 4, "temperature": 1.0, **SIBLINGS}
    found, _, counted = judged(decide, [answer("1"), answer("2")], **settings)
    assert found == [0.75, 0.25]
    assert counted["counts/judge_contradictions"] == 1


def test_a_judge_that_is_not_reached_or_reads_too_little_costs_a_named_failure():
    def gone(prompts, sampling):
        raise ConnectionRefusedError("nobody there")

    judge = ComparingJudge(gone, tiny_processor(), JudgeConfig(path="policy", **SIBLINGS), None)
    assert [f.reason for f in judge([answer("1"), answer("2")])] == [
        "the judge was not reached: nobody there."
    ] * 2
    judge = ComparingJudge(gone, tiny_processor(), JudgeConfig(path="policy", **SIBLINGS), 5)
    assert all("room for 5" in f.reason for f in judge([answer("1"), answer("2")]))


def runner(decide, **options):
    judge = ComparingJudge(Deciding(decide), tiny_processor(), JudgeConfig(path="policy", **SIBLINGS), None)
    made = RewardRunner({"test": {"judge": 1.0}}, RewardConfig(workers=0, **options))
    made.models = {"judge": Output(judge, counted=judge.counted)}
    return made


def spoken(text, group=0):
    prompt = Prompt("q", [1], [{"role": "user", "content": "?"}], None, "test")
    return Trajectory(prompt, group, [7], [True], [0.0], "stop", answer=text)


def test_contradictions_are_a_metric_and_failures_are_dropped_or_stop_the_run():
    found = runner(longer)([spoken("1"), spoken("22"), spoken("333")])
    assert [t.reward for t in found.kept] == [0.0, 0.5, 1.0]
    assert found.metrics["counts/judge_comparisons"] == 3
    assert found.metrics["counts/judge_contradictions"] == 0
    silent = lambda *_: "no idea"  # noqa: E731  # a decision
    dropped = runner(silent, on_failure="drop")([spoken("1"), spoken("22")])
    assert dropped.kept == []
    assert dropped.metrics["counts/failed/judge"] == 2
    with pytest.raises(RewardError, match="named neither A nor B"):
        runner(silent)([spoken("1"), spoken("22")])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"against": "target", "rivals": 3}, "judge.rivals=3 has no effect with judge.against=target"),
        ({"against": "siblings", "score_pattern": "(x)"}, r"judge.score_pattern=\(x\) has no effect"),
        ({"against": "siblings", "max_score": 5.0}, "judge.max_score=5.0 has no effect with judge.against"),
        ({"against": "siblings", "rivals": 0}, "judge.rivals=0: must be"),
    ],
)
def test_settings_that_have_no_effect_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        JudgeConfig(path="policy", **settings)


def test_groups_that_are_too_small_are_named_before_anything_loads():
    def config(size, rivals=2):
        return Config(
            rollout=RolloutConfig(group_size=size),
            judge=JudgeConfig(path="policy", rivals=rivals, **SIBLINGS),
        )

    check_siblings(config(3))
    with pytest.raises(ValueError, match=r"judge.against=siblings .* rollout.group_size=1"):
        check_siblings(config(1))
    with pytest.raises(ValueError, match="judge.rivals=4: a response has 3 siblings"):
        check_siblings(config(4, 4))


def test_a_template_needs_places_for_both_answers(tmp_path):
    (tmp_path / "ask.txt").write_text("Is {answer_a} good?")
    with pytest.raises(ValueError, match="has no place for {answer_b}"):
        judged(longer, [], template=str(tmp_path / "ask.txt"), **SIBLINGS)
