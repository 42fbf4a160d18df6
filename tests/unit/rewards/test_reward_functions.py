from dataclasses import replace

import pytest

from lightrft.rewards.function import Answer, Question, as_reward, each, values_of
from lightrft.rewards.table import load_reward


def spoken(answer, *, target="5", messages=({"role": "user", "content": "2 + 3?"},)):
    asked = Question(id="q", messages=list(messages), target=target, source="sums")
    return Answer(prompt=asked, group=0, token_ids=[7, 8, 9], answer=answer, finish="length")


def test_each_fills_parameters_by_name():
    @each
    def seen(finish, answer, target, prompt, source, num_tokens):
        assert (answer, target, prompt, source, finish, num_tokens) == (
            "4",
            "5",
            "2 + 3?",
            "sums",
            "length",
            3,
        )
        return 0.25

    assert seen([spoken("4")]) == [0.25]


def test_the_length_of_a_conversation_is_what_the_policy_said():
    @each
    def seen(num_tokens):
        return num_tokens

    assert seen([replace(spoken("4"), said=[{"role": "assistant", "content": "4"}], replied=2)]) == [1.0]


def test_each_gives_a_function_with_double_star_everything():
    @each
    def seen(answer, **rest):
        return len(rest)

    assert seen([spoken("4")]) == [8.0]


def test_each_leaves_unknown_parameters_with_defaults_alone():
    @each
    def short(answer, most=3):
        return len(answer) <= most

    assert short([spoken("abc"), spoken("abcd")]) == [1.0, 0.0]


def test_each_refuses_a_parameter_it_cannot_fill():
    with pytest.raises(
        ValueError, match="reward 'odd' asks for 'gold'; a per-response reward can have: answer, target"
    ):

        @each
        def odd(answer, gold):
            return 1.0


def two(answers, targets):
    return [1.0] * len(answers)


def compute_score(data_source, solution_str, ground_truth, extra_info=None):  # verl's
    return 1.0


async def later(answers):
    return [1.0]


class Later:
    async def __call__(self, answers):
        return [1.0]


@pytest.mark.parametrize("found", [two, compute_score, later, Later(), lambda: 1.0], ids="abcde")
def test_what_could_never_be_called_with_responses_is_refused_before_any_is_sampled(found):
    with pytest.raises(ValueError, match=r"reward 'mine' (cannot be called|is an async function)"):
        as_reward(found, "mine")


def test_a_function_of_all_responses_may_have_any_parameter_first_and_others_with_defaults():
    def rare(found, scale=2.0, *rest, **more):
        return [scale] * len(found)

    assert as_reward(rare, "rare") is rare


def test_the_question_of_a_message_made_of_parts_is_its_text():
    @each
    def asked(answer, prompt):
        return prompt == "What is this?"

    parts = [{"type": "image", "image": None}, {"type": "text", "text": "What is this?"}]
    assert asked([spoken("x", messages=[{"role": "user", "content": parts}])]) == [1.0]


def test_a_plain_function_with_a_parameter_answer_is_lifted():
    def right(answer, target):
        return answer == target

    assert as_reward(right, "right")([spoken("5"), spoken("6")]) == [1.0, 0.0]


def test_a_function_over_trajectories_is_taken_as_it_is():
    def longest(trajectories):
        return [float(len(t.answer)) for t in trajectories]

    assert as_reward(longest, "longest")([spoken("abc")]) == [3.0]


def test_what_is_not_a_function_is_refused():
    with pytest.raises(ValueError, match="reward 'pi' is a float, not a function"):
        as_reward(3.14, "pi")


def test_too_few_values_are_refused():
    with pytest.raises(ValueError, match="returned 1 values for 2 responses"):
        values_of(lambda trajectories: [1.0], [spoken("a"), spoken("b")])


@pytest.mark.parametrize("value", [None, "1.0"])
def test_what_is_not_a_number_is_refused(value):
    with pytest.raises(TypeError, match="is not a number"):
        values_of(lambda trajectories: [value], [spoken("a")])


def test_an_error_names_the_answer_it_was_judging():
    @each
    def picky(answer):
        return 1 / len(answer)

    with pytest.raises(ZeroDivisionError) as caught:
        picky([spoken("a"), spoken("")])
    assert caught.value.__notes__ == ["while judging the response ''"]


def test_a_plain_function_of_a_picture_or_a_clip_is_one_of_each_response(tmp_path):
    """By import path and without a decorator, as one of a text."""
    (tmp_path / "mine.py").write_text(
        "def bright(image):\n    return image\n\ndef moves(clip, target):\n    return clip\n"
    )
    for name, view in (("bright", "image"), ("moves", "clip")):
        assert view in load_reward(f"{tmp_path}/mine.py:{name}").parameters
