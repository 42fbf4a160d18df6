"""Formats for judges in words: what is asked, what is right, and in which order two answers stand."""

import pickle

import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.judging import conversed, written
from lightrft.datasets.preferences import judged, scored
from lightrft.datasets.sources import BadRecords
from lightrft.rewards.text import choice
from lightrft.tasks.base import bare_gold, records
from lightrft.types import Record

CONFIG = TaskConfig()
ROW = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
ASKED = {"role": "user", "content": "2 + 2?"}


def rows(count):
    return [{"prompt": f"{n} + 1?", "chosen": f"{n + 1}", "rejected": f"it is {n}"} for n in range(count)]


def swapped(row):
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def shown(question, letter):
    """The answer that stands under a letter."""
    return question.split(f"[Answer {letter}]\n")[1].split("\n\n[")[0]


def test_the_better_answer_is_a_in_half_of_all_rows_and_stands_under_the_letter_that_is_right():
    found = [(row, judged(row, CONFIG)) for row in rows(10_000)]
    assert 4800 <= sum(example.target == "A" for _, example in found) <= 5200
    assert all(shown(example.prompt, example.target) == row["chosen"] for row, example in found)
    assert [judged(row, CONFIG) for row in rows(50)] == [example for _, example in found[:50]]


def test_swapping_the_sides_of_every_row_swaps_every_target_and_nothing_else():
    for row in rows(500):
        one, other = judged(row, CONFIG), judged(swapped(row), CONFIG)
        assert one.prompt == other.prompt
        assert {one.target, other.target} == {"A", "B"}


def test_the_question_holds_prompt_and_answers_once_and_nothing_is_filled_in_again():
    asked = judged({"prompt": "Say {answer_a}", "chosen": "{question}", "rejected": "no"}, CONFIG).prompt
    assert asked.startswith("Which of two answers to a question is better?")
    assert "[Question]\nSay {answer_a}\n" in asked
    assert asked.count("{question}") == 1
    assert written("{a}{b}{c}", {"a": "{b}", "b": "x"}) == "{b}x{c}"


def test_a_conversation_of_several_turns_says_who_speaks():
    talk = [ASKED, {"role": "assistant", "content": "4"}, {"role": "user", "content": "Sure?"}]
    assert conversed(talk) == "User: 2 + 2?\nAssistant: 4\nUser: Sure?"
    assert conversed(talk[:1]) == "2 + 2?"
    assert "User: 2 + 2?\nAssistant: 4\nUser: Sure?" in judged({**ROW, "prompt": talk}, CONFIG).prompt


@pytest.mark.parametrize(
    ("reasons", "told"),
    [(None, ""), ("Four. So {chosen}, not {rejected}.", "Four. So {better}, not {other}.\n")],
)
def test_what_is_learned_says_the_reasons_and_then_the_letter_which_the_reward_finds(reasons, told):
    for row in ({**ROW, "rationale": reasons}, swapped({**ROW, "rationale": reasons})):
        target = judged(row, CONFIG).target
        other = {"A": "B", "B": "A"}[target]
        gold = bare_gold(Record("r", [], target, "file"))
        assert gold == told.format(better=target, other=other) + f"Answer: {target}"
        assert (choice(gold, target), choice(gold, other)) == (1.0, 0.0)


def test_a_verdict_travels_as_plain_text():
    target = judged(ROW, CONFIG).target
    assert type(pickle.loads(pickle.dumps(target))) is str
    assert pickle.loads(pickle.dumps(target)) == target


def test_media_of_a_prompt_stand_where_the_question_does():
    row = {"prompt": "<image> How many?", "images": ["a.png"], "chosen": "4", "rejected": "5"}
    (asked,) = judged(row, CONFIG).prompt
    before, picture, text, after = asked["content"]
    assert before["text"].endswith("[Question]\n")
    assert (picture, text["text"]) == ({"type": "image", "image": "a.png"}, " How many?")
    assert "[Answer A]" in after["text"]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"rejected": None}, "field 'rejected' is null"),
        ({"rejected": "4"}, "say the same"),
        ({"chosen": "  "}, "field 'chosen' is empty"),
        ({"chosen": 4}, "'chosen' must be text, a message or a list"),
        ({"chosen": [ASKED]}, "'chosen' is no response"),
        ({"rationale": ["many"]}, "field 'rationale' must be text"),
        (
            {"chosen": [{"role": "assistant", "content": [{"type": "image", "image": "a.png"}]}]},
            "field 'chosen' holds a picture, clip or sound",
        ),
    ],
)
def test_a_row_that_is_no_pair_for_a_judge_is_told_why(changed, complaint):
    with pytest.raises(ValueError, match=complaint):
        judged({**ROW, **changed}, CONFIG)


def test_broken_rows_are_named_or_skipped_and_counted():
    some = [("1", ROW), ("2", {**ROW, "chosen": "5"}), ("3", {**ROW, "chosen": ""})]
    found = records(some, judged, CONFIG, BadRecords("skip"), source="file", instruction="")
    assert ([record.id for record in found], found.skipped) == (["file/1"], 2)
    with pytest.raises(ValueError, match="^2: fields 'chosen' and 'rejected' say the same"):
        records(some, judged, CONFIG, BadRecords("raise"), source="file", instruction="")


def test_a_scored_response_is_asked_about_as_the_reward_asks():
    row = {"prompt": "2 + 2?", "response": "4", "score": 10, "rationale": "That is so."}
    example = scored(row, CONFIG)
    assert "[Question]\n2 + 2?\n\n[Answer]\n4\n" in example.prompt
    assert "Score: N" in example.prompt
    assert (example.target, example.target.response) == ("10", "That is so.\nScore: 10")
    assert scored({**row, "score": 2.5, "rationale": None}, CONFIG).target.response == "Score: 2.5"


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"score": 11}, "field 'score' is 11, and a score is from 0 to 10"),
        ({"score": "good"}, "field 'score' holds 'good', which is no finite number"),
        ({"score": True}, "field 'score' holds True"),
        ({"response": ""}, "field 'response' is empty"),
        ({"prompt": None}, "field 'prompt' is null"),
    ],
)
def test_a_row_that_is_no_scored_response_is_told_why(changed, complaint):
    with pytest.raises(ValueError, match=complaint):
        scored({"prompt": "2 + 2?", "response": "4", "score": 1, **changed}, CONFIG)
