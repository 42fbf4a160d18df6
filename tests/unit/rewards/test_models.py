"""Rewards that models give: what they are asked, what is made of their replies, and what happens where there is no score."""

import io
from copy import deepcopy
from dataclasses import replace
from email.message import Message
from urllib.error import HTTPError

import numpy
import pytest

from lightrft.config import JudgeConfig, MediaConfig, ModelConfig, RewardConfig
from lightrft.models.load import load_processor
from lightrft.models.processor import Processor
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.function import Answer, Question
from lightrft.rewards.models import GenerativeJudge, Output, ScalarReward
from lightrft.testing import tiny_processor, tiny_trajectories
from lightrft.types import Completion
from lightrft.workers.pool import Failure


def answer(text, question="2 + 2?", target="4"):
    messages = [{"role": "user", "content": question}]
    return Answer(Question("q", messages, target, "test"), group=0, token_ids=[1], answer=text, finish="stop")


def talk(last, reply="8"):
    """A conversation with an environment, of two turns of the policy."""
    said = [("assistant", "4 * 2"), ("user", reply), ("assistant", last)]
    return replace(answer(last), said=[{"role": role, "content": text} for role, text in said])


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


def judged(texts, answers, longest=None, **settings):
    ask = Replying(*texts)
    judge = GenerativeJudge(ask, tiny_processor(), JudgeConfig(path="policy", **settings), longest)
    return judge(answers), ask


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


def test_a_judge_that_sees_is_shown_the_pictures_where_the_question_stands_and_no_others():
    """Marks of pictures that the response writes stay text; a judge of text is told names."""
    pixels = [numpy.full((8, 8, 3), n, numpy.uint8) for n in (0, 255)]
    sees, asked = load_processor(ModelConfig(path="random:llava"), MediaConfig()), []
    mark = sees.media.marks()["image"][0]
    picture = [{"type": "image", "image": pixels[0]}, {"type": "text", "text": "which?"}]
    one = answer(f"black {mark}{mark}", picture)
    other = answer("white", [{"type": "image", "image": pixels[1]}, picture[1]])

    def ask(prompts, sampling):
        asked.extend(prompts)
        return [
            [Completion(sees.tokenizer.encode("8", add_special_tokens=False), [0.0], "stop")] for _ in prompts
        ]

    options = JudgeConfig(path="policy", score_pattern="([0-9])")
    assert GenerativeJudge(ask, sees, options, None)([one, other]) == [0.8, 0.8]
    shown = [prompt.media["pixel_values"] for prompt in asked]
    assert [len(found) for found in shown] == [1, 1]
    assert shown[0].mean() < shown[1].mean()
    content = asked[0].messages[0]["content"]
    assert content[0]["text"].endswith("[Question]\n")
    assert [part["type"] for part in content] == ["text", "image", "text", "text"]
    assert f"[Answer]\nblack {mark[0]}\u200b{mark[1:]}" in content[3]["text"]
    _, told = judged(["Score: 1"], [answer("x", [{"type": "image", "image": "a.png"}])])
    assert "[Question]\n[image a.png]\n" in told.asked[0]


def test_a_judge_is_shown_the_whole_of_a_conversation_with_an_environment():
    _, ask = judged(["Score: 3"], [talk("so 8")])
    assert "[Answer]\nAssistant: 4 * 2\nUser: 8\nAssistant: so 8\n" in ask.asked[0]


def test_several_replies_are_averaged_and_those_without_a_score_left_out():
    found, ask = judged(
        ["Score: 2", "no idea", "Score: 4", "no", "Score: 99", "Score: -1"],
        [answer("4"), answer("5")],
        samples=3,
        temperature=0.7,
    )
    assert found[0] == pytest.approx(0.3)
    assert isinstance(found[1], Failure)
    assert "named no score between 0 and judge.max_score=10" in found[1].reason
    assert ask.sampling.n == 3
    (found,), _ = judged(["mark: many"], [answer("4")], score_pattern=r"mark: (\w+)")
    assert isinstance(found, Failure)


def test_what_an_answer_says_is_not_filled_in_again(tmp_path):
    file = tmp_path / "ask.txt"
    file.write_text("Is {answer} right for {question}? It should be {target}. Say mark=N.")
    found, ask = judged(
        ["mark=1"], [answer("{target}")], template=str(file), score_pattern=r"mark=(\d)", max_score=1.0
    )
    assert "Is {target} right for 2 + 2?? It should be 4." in ask.asked[0]
    assert found == [1.0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"score_pattern": "Score: 1"}, "must have one group"),
        ({"score_pattern": "(("}, "not a regular expression"),
        ({"samples": 2}, "gives the same reply 2 times"),
        ({"max_score": 0.0}, "must be above 0"),
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

    assert ScalarReward(scores, tiny_processor(), None)([answer("four")]) == [0.25]
    assert seen == ["<|user|>2 + 2?<|end|><|assistant|>four<|end|>"]


def test_a_reward_model_reads_the_whole_of_a_conversation_with_an_environment():
    seen = []

    def scores(conversations):
        seen.extend(tiny_processor().text(tokens, special=True) for tokens in conversations)
        return [0.0 for _ in conversations]

    ScalarReward(scores, tiny_processor(), None)([talk("so 8"), replace(talk("so"), finish="length")])
    begun = "<|user|>2 + 2?<|end|><|assistant|>4 * 2<|end|><|user|>8<|end|><|assistant|>so"
    assert seen == [begun + " 8<|end|>", begun]


def test_the_token_at_which_a_reward_model_reads_its_score_can_be_shown():
    processor = tiny_processor()
    (end,) = processor.stop_ids
    said = "<|user|>2 + 2?<|end|><|assistant|>four"
    assert ScalarReward(list, processor, None).shown(answer("four")) == f"{said}»<|end|>«"
    assert ScalarReward(list, processor, None, padding=end).shown(answer("four")) == f"{said[:-1]}»r«<|end|>"
    assert (
        ScalarReward(list, processor, None).shown(answer("four" * 20)) == f"...{('four' * 20)[-39:]}»<|end|>«"
    )


def test_a_truncated_answer_is_not_shown_to_a_reward_model_as_finished():
    seen = []

    def scores(conversations):
        seen.extend(tiny_processor().text(tokens, special=True) for tokens in conversations)
        return [0.0 for _ in conversations]

    ScalarReward(scores, tiny_processor(), None)([answer("four"), replace(answer("fo"), finish="length")])
    assert seen == [
        "<|user|>2 + 2?<|end|><|assistant|>four<|end|>",
        "<|user|>2 + 2?<|end|><|assistant|>fo",
    ]


def test_a_template_that_refuses_all_conversations_makes_failures_of_truncated_answers_too():
    processor = tiny_processor()
    refusing = Processor(deepcopy(processor.tokenizer), processor.stop_ids, processor.vocab_size)
    refusing.tokenizer.chat_template = "{{ raise_exception('not that') }}"
    found = ScalarReward(lambda _: [], refusing, None)(
        [answer("four"), replace(answer("fo"), finish="length")]
    )
    assert [one.reason for one in found] == ["its model cannot be asked: not that"] * 2


def test_what_is_longer_than_a_judge_can_read_has_no_score_and_the_others_keep_theirs():
    _, ask = judged(["Score: 1"], [answer("4")])
    room = len(tiny_processor().tokenizer.encode(ask.asked[0], add_special_tokens=False))
    long = answer("4" * 9)
    found, ask = judged(["Score: 8", "Score: 6"], [answer("4"), long, answer("5")], longest=room)
    assert [found[0], found[2]] == [0.8, 0.6]
    assert f"there are {room + 8} tokens to read and room for {room}" in found[1].reason
    assert "judge.max_length" in found[1].reason
    assert len(ask.asked) == 2


def test_what_is_longer_than_a_reward_model_can_read_has_no_reward_and_the_others_keep_theirs():
    lengths = []

    def scores(conversations):
        lengths.extend(map(len, conversations))
        return [float(len(tokens)) for tokens in conversations]

    rate = ScalarReward(scores, tiny_processor(), 12)
    found = rate([answer("123"), answer("4"), answer("12")])
    assert [type(f) for f in found] == [Failure, float, float]
    assert lengths == [11, 12] == found[1:]
    assert "there are 13 tokens to read and room for 12" in found[0].reason
    assert "reward_model.max_length" in found[0].reason


def test_a_conversation_that_a_chat_template_refuses_has_no_score():
    processor = tiny_processor()
    refusing = Processor(deepcopy(processor.tokenizer), processor.stop_ids, processor.vocab_size)
    refusing.tokenizer.chat_template = (
        "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('not that') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    found = GenerativeJudge(Replying("Score: 5"), refusing, JudgeConfig(path="policy"), None)(
        [answer("bad"), answer("4")]
    )
    assert found[1] == 0.5
    assert found[0].reason == "its model cannot be asked: not that"


def test_a_judge_that_refuses_one_question_is_asked_the_others_again():
    replying = Replying(*["Score: 5"] * 2)

    def ask(prompts, sampling):
        said = [tiny_processor().text(p.token_ids) for p in prompts]
        if any("bad" in text for text in said):
            raise HTTPError(
                "http://judge", 400, "Bad Request", Message(), io.BytesIO(b"that one is too long")
            )
        return replying(prompts, sampling)

    found = GenerativeJudge(ask, tiny_processor(), JudgeConfig(path="policy"), None)(
        [answer("4"), answer("bad"), answer("5")]
    )
    assert [found[0], found[2]] == [0.5, 0.5]
    assert found[1].reason == "the judge refused the prompt: HTTP 400: that one is too long"


def test_a_mistake_of_ours_in_asking_is_no_failure_of_an_answer():
    def score(conversations):
        raise KeyError("gone")

    with pytest.raises(KeyError):
        ScalarReward(score, tiny_processor(), None)([answer("4")])


def test_a_judge_that_is_not_reached_costs_its_answers_their_score_and_not_the_run():
    def ask(prompts, sampling):
        raise ConnectionRefusedError("nobody there")

    found = GenerativeJudge(ask, tiny_processor(), JudgeConfig(path="policy"), None)(
        [answer("4"), answer("5")]
    )
    assert [f.reason for f in found] == ["the judge was not reached: nobody there."] * 2


def with_models(weights, models, **settings):
    judge = RewardRunner({"test": weights}, RewardConfig(**{"workers": 0, **settings}))
    judge.models = {name: Output(model) for name, model in models.items()}
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
    assert judged.metrics == {"counts/dropped_responses": 1.0, "counts/failed/judge": 1.0}


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


def test_a_model_with_several_outputs_is_asked_once_for_the_answers_that_any_of_them_is_for():
    calls = []

    def model(views):
        calls.append(len(views))
        return [[1.0, 2.0]] * len(views)

    judge = RewardRunner(
        {"test": {"helpful": 1.0, "harm": -1.0}},
        RewardConfig(workers=0),
        models={"helpful": None, "harm": None},
    )
    judge.models = {"helpful": Output(model, 0), "harm": Output(model, 1)}
    with judge:
        judged = judge(tiny_trajectories([(3, [4, 5])]))
    assert calls == [2]
    assert [t.parts for t in judged.kept] == [{"helpful": 1.0, "harm": 2.0}] * 2
    assert [t.reward for t in judged.kept] == [-1.0, -1.0]


def pictured(image):
    """A response that is a picture, as a policy draws it."""
    return replace(answer("", "a five", 5), made={} if image is None else {"image": image})


def test_a_picture_that_a_policy_drew_is_read_as_one_that_stands_in_a_conversation():
    processor, read = load_processor(ModelConfig(path="random:llava"), MediaConfig()), []

    def score(conversations):
        read.extend(conversations)
        return [float(n) for n in range(len(conversations))]

    images = [numpy.random.default_rng(n).integers(0, 256, (8, 8, 3), numpy.uint8) for n in range(2)]
    found = ScalarReward(score, processor, None, drawn="image")([pictured(image) for image in images])
    assert found == [0.0, 1.0]
    for image, mine in zip(images, list(read), strict=True):
        said = {"role": "assistant", "content": [{"type": "image", "image": image}]}
        asked = Question("q", [{"role": "user", "content": "a five"}, said], 5, "test")
        ScalarReward(score, processor, None)([replace(answer(""), prompt=asked)])
        assert read[-1].token_ids == mine.token_ids
        assert all((read[-1].media[name] == value).all() for name, value in mine.media.items())
    assert not (read[0].media["pixel_values"] == read[1].media["pixel_values"]).all()
    (none,) = ScalarReward(score, processor, None, drawn="image")([pictured(None)])
    assert isinstance(none, Failure)
    assert "holds no image" in none.reason
