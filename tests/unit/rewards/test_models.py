"""Rewards that models give: what they are asked, what is made of their replies, and what happens where there is no score."""

import pytest

from lightrft.config import JudgeConfig, RewardConfig
from lightrft.rewards.base import Judge
from lightrft.rewards.function import Answer, Question
from lightrft.rewards.models import GenerativeJudge, ScalarReward
from lightrft.rewards.workers import Failure
from lightrft.testing import tiny_processor, tiny_trajectories
from lightrft.types import Completion


def answer(text, question="2 + 2?", target="4"):
    messages = [{"role": "user", "content": question}]
    return Answer(Question("q", messages, target, "test"), group=0, token_ids=[1], answer=text, finish="stop")


class Replying:
    """An engine that says these texts, in turn, and remembers what it was asked."""

    def __init__(self, *texts):
        self.texts, self.asked, self.sampling = list(texts), [], None

    def __call__(self, prompts, sampling):
        self.asked += [tiny_processor().text(p.token_ids, special=True) for p in prompts]
        self.sampling = sampling
        encode = tiny_processor().tokenizer.encode
        replies = [self.texts.pop(0) for _ in range(len(prompts) * sampling.n)]
        tokens = [encode(text, add_special_tokens=False) for text in replies]
        done = [Completion(t, [0.0] * len(t), "stop") for t in tokens]
        return [done[n * sampling.n : (n + 1) * sampling.n] for n in range(len(prompts))]


def judged(texts, answers, **settings):
    ask = Replying(*texts)
    return GenerativeJudge(ask, tiny_processor(), JudgeConfig(path="policy", **settings))(answers), ask


def test_the_last_score_of_a_reply_counts_as_a_share_of_full_marks():
    replies = ["Score: 3? No. Score: 8", "I say\n**score:** 7.5 of 10", "it is good"]
    found, ask = judged(replies, [answer("4"), answer("5"), answer("6")])
    assert found[:2] == [0.8, 0.75]
    assert isinstance(found[2], Failure)
    assert "it said 'it is good'" in found[2].reason
    assert "[Question]\n2 + 2?\n" in ask.asked[0]
    assert "[Answer]\n4\n" in ask.asked[0]
    assert ask.asked[0].startswith("<|user|>")
    assert ask.asked[0].endswith("<|assistant|>")
    assert (ask.sampling.n, ask.sampling.temperature, ask.sampling.max_tokens) == (1, 0.0, 256)


def test_several_replies_are_averaged_and_those_without_a_score_left_out():
    found, ask = judged(
        ["Score: 2", "no idea", "Score: 4", "no", "Score: 99", "Score: -1"],
        [answer("4"), answer("5")],
        samples=3,
        temperature=0.7,
    )
    assert found[0] == pytest.approx(0.3)
    assert isinstance(found[1], Failure)
    assert "named no score between 0 and judge.full_marks=10" in found[1].reason
    assert ask.sampling.n == 3
    (found,), _ = judged(["mark: many"], [answer("4")], score=r"mark: (\w+)")
    assert isinstance(found, Failure)


def test_what_an_answer_says_is_not_filled_in_again(tmp_path):
    file = tmp_path / "ask.txt"
    file.write_text("Is {answer} right for {question}? It should be {target}. Say mark=N.")
    found, ask = judged(
        ["mark=1"], [answer("{target}")], template=str(file), score=r"mark=(\d)", full_marks=1.0
    )
    assert "Is {target} right for 2 + 2?? It should be 4." in ask.asked[0]
    assert found == [1.0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"score": "Score: 1"}, "must have one group"),
        ({"score": "(("}, "not a regular expression"),
        ({"samples": 2}, "gives the same reply 2 times"),
        ({"full_marks": 0.0}, "must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, told):
    with pytest.raises(ValueError, match=told):
        JudgeConfig(path="policy", **settings)


def test_a_template_that_is_missing_or_has_no_place_for_the_answer_is_named(tmp_path):
    with pytest.raises(ValueError, match="judge.template=.*no.txt: there is no such file"):
        judged([], [], template=str(tmp_path / "no.txt"))
    (tmp_path / "ask.txt").write_text("Is it good?")
    with pytest.raises(ValueError, match="has no place for {answer}"):
        judged([], [], template=str(tmp_path / "ask.txt"))


def test_a_reward_model_reads_the_question_and_the_answer_to_its_end():
    seen = []

    def scores(conversations):
        seen.extend(tiny_processor().text(tokens, special=True) for tokens in conversations)
        return [0.25 for _ in conversations]

    assert ScalarReward(scores, tiny_processor())([answer("four")]) == [0.25]
    assert seen == ["<|user|>2 + 2?<|end|><|assistant|>four<|end|>"]


def with_models(weights, models, **settings):
    judge = Judge({"test": weights}, RewardConfig(**{"workers": 0, **settings}))
    judge.models = models
    return judge


def test_rewards_of_models_and_of_functions_are_weighted_and_added():
    answers = tiny_trajectories([(3, [4, 5])])
    with with_models({"judge": 2.0, "length": 1.0}, {"judge": lambda views: [0.5, 1.0]}) as judge:
        judged = judge(answers)
    assert [t.parts["judge"] for t in judged.kept] == [0.5, 1.0]
    assert [t.reward for t in judged.kept] == [2 * t.parts["judge"] + t.parts["length"] for t in judged.kept]


def test_an_answer_without_a_score_stops_the_run_or_is_left_out_as_set():
    models = {"judge": lambda views: [Failure("the judge said nothing."), *[1.0] * (len(views) - 1)]}
    with (
        with_models({"judge": 1.0}, models) as judge,
        pytest.raises(RuntimeError, match="'judge' failed .*the judge said nothing"),
    ):
        judge(tiny_trajectories([(3, [4, 5, 6])]))
    with with_models({"judge": 1.0}, models, on_failure="drop") as judge:
        judged = judge(tiny_trajectories([(3, [4, 5, 6])]))
    assert len(judged.kept) == 2
    assert judged.metrics == {"counts/dropped_answers": 1.0, "counts/failed/judge": 1.0}


def test_a_model_is_asked_also_without_answers():
    """An engine of several ranks wants a call of each."""
    calls = []

    def model(views):
        calls.append(len(views))
        return [1.0] * len(views)

    with with_models({"judge": 1.0}, {"judge": model}) as judge:
        judge([])
        judge(tiny_trajectories([(3, [4, 5]), (2, [1, 2])]))
    assert calls == [0, 4]
