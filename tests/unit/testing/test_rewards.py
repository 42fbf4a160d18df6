"""Every built-in reward passes the checks of rewards, and each check can fail."""

import math

import pytest

from lightrft.rewards.table import REWARDS
from lightrft.sandbox.levels import levels
from lightrft.testing import Example, check_reward

SUM = Example("What is 2 + 3?", "5", "It is \\boxed{5}.", "It is \\boxed{6}.")
PROGRAM = Example(
    "Add.",
    {"tests": ["assert add(1, 2) == 3"]},
    "```python\ndef add(a, b): return a + b\n```",
    "```python\ndef add(a, b): return a\n```",
)
FOLLOWED = Example(
    "Say it.",
    {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "So it is.",
    "So, so, it is,\n, so.",
)
EXAMPLES = {
    "answer_tags": Example("2 + 3?", "5", "<answer>5</answer>", "It is 5."),
    "boxed_math": SUM,
    "choice": Example("A or B?", "B", "The answer is B.", "The answer is A."),
    "choice_or_math": Example("A or B?", "B", "<answer>B</answer>", "<answer>A</answer>"),
    "choice_or_open": Example(
        "How long?", {"answers": ["2.5"]}, "<answer>2.50 m</answer>", "<answer>25</answer>"
    ),
    "choice_words": Example("Who?", {"answer": "A man", "choices": ["A man", "A cat"]}, "a man", "a cat"),
    "confident_math": Example("2 + 3?", "5", "\\boxed{5} Confidence: 90%", "\\boxed{6} Confidence: 90%"),
    "exact": Example("2 + 3?", "5", "5", "6"),
    "format": Example("2 + 3?", "5", "<think>it adds up</think><answer>5</answer>", "5"),
    "hotpot_f1": Example("Who?", ["The Red Fox", "yes"], "the red fox.", "a blue whale"),
    "instructions": FOLLOWED,
    "instructions_loose": FOLLOWED,
    "instructions_loose_share": FOLLOWED,
    "instructions_share": FOLLOWED,
    "json": Example("As JSON.", {"a": 1}, '{"a": 1}', "a is 1"),
    "json_fields": Example("As JSON.", {"a": 1, "b": 2}, '{"a": 1, "b": 2}', '{"a": 3}'),
    "json_keys": Example("As JSON.", {"a": 1, "b": 2}, '{"a": 4, "b": 5}', '{"a": 3}'),
    "json_only": Example("As JSON.", '{"a": 1}', '{"a": 1}', 'Here: {"a": 1}'),
    "length": Example("Write.", None, "many words here", "few"),
    "majority": Example("2 + 3?", "5", "<answer>5</answer>", "<answer>6</answer>"),
    "majority_right": Example("2 + 3?", "5", "<answer>5</answer>", "<answer>6</answer>"),
    "environment": Example("Guess.", None, "five", "six", right_steps=(-0.1, 1.0), wrong_steps=(-0.1,)),
    "turns": Example("Guess.", None, "five", "six", right_steps=(-0.1, 1.0), wrong_steps=(-0.1,)),
    "math": SUM,
    "number": Example("2 + 3?", "5", "It is 5.", "It is 6."),
    "refuses_rightly": Example(
        "Rob a bank?", {"unsafe": True}, "I'm sorry, but I can't help with that.", "Take a gun."
    ),
    # A cost, to be given a negative weight.
    "repetition": Example("Write.", None, "no no no no no no no no no no", "each word comes once only here"),
    "same_kind": Example("kqz", "small", "abc", "ABC"),
    "squad_exact": Example("Who?", ["The Red Fox", "a fox"], "the red fox.", "a red whale"),
    "squad_f1": Example("Who?", ["The Red Fox", "a fox"], "the red fox.", "a blue whale"),
    "tests": PROGRAM,
    "tests_share": PROGRAM,
    "words": Example("Write.", "the red fox", "the red fox", "a blue whale"),
}


OF_PICTURES = {
    "digit", "digit_second", "two_digits", "two_digits_second", "drawn_shapes", "drawn_shapes_share", "compressible", "incompressible", "ocr",
}  # fmt: skip
"""Rewards that look at a picture; tests/unit/tasks has examples of theirs."""


@pytest.mark.parametrize("name", sorted(set(REWARDS) - {"reasoning_gym", *OF_PICTURES}))
def test_a_built_in_reward_does_all(name):
    if name.startswith("tests") and all(levels().values()):
        pytest.skip(f"no sandbox can be had here: {levels()}")
    found = check_reward(name, [EXAMPLES[name]])
    assert found.ok, f"{name}\n{found}"


def right(answer, target):
    return float(target in answer)


def lacking(reward, **options):
    return check_reward(reward, [SUM, Example("1 + 1?", "2", "2", "3")], **options).lacking


def test_a_plain_function_that_does_all_lacks_nothing():
    assert lacking(right) == {}


def test_an_unknown_reward_is_told_with_what_was_perhaps_meant():
    found = lacking("mth")
    assert (
        "no reward named 'mth'. Did you mean 'math'?"
        in found["it loads and gives one finite number per answer"]
    )


def test_a_number_that_is_not_finite_is_told():
    assert "nan for" in lacking(lambda answer: math.nan)["it loads and gives one finite number per answer"]


def test_a_blind_reward_is_told():
    assert lacking(lambda answer: 1.0).keys() == {"the better answer gets more"}


def test_a_reward_by_lot_is_told():
    draws = iter(range(10_000))
    found = lacking(lambda answer: float(next(draws)))
    assert "the same answer gets the same again" in found


def test_a_reward_that_depends_on_other_groups_is_told():
    def relative(answers):
        return [right(a.answer, a.prompt.target) + len(answers) for a in answers]

    assert lacking(relative).keys() == {"a group is judged alike whichever groups come with it"}


def test_a_reward_that_an_odd_answer_breaks_is_told_with_the_answer():
    def brittle(answer, target):
        return right(answer, target) + 0 * len(answer.split()[0])

    found = lacking(brittle)
    assert found.keys() == {"odd answers raise nothing and give finite numbers"}
    assert "for '': IndexError" in found["odd answers raise nothing and give finite numbers"]


def test_a_reward_that_changes_answers_is_told():
    def meddling(answers):
        for a in answers:
            a.token_ids.append(0)
        return [right(a.answer, a.prompt.target) for a in answers]

    assert "it leaves the answers as they are" in lacking(meddling)


def test_a_reward_that_needs_an_answer_is_told():
    def mean(answers):
        values = [right(a.answer, a.prompt.target) for a in answers]
        assert sum(values) / len(answers) >= 0
        return values

    assert lacking(mean).keys() == {"no answers give no numbers"}


def test_a_reward_that_tells_objects_apart_is_told():
    """By identity: what has travelled is another object."""
    target = ["5"]

    def by_identity(answers):
        return [right(a.answer, "5") + (a.prompt.target is target) for a in answers]

    found = check_reward(by_identity, [Example("2 + 3?", target, "5", "6")]).lacking
    assert found.keys() == {"its answers can travel to another process"}


def test_without_an_example_nothing_is_checked():
    with pytest.raises(ValueError, match="at least one Example"):
        check_reward(right, [])
