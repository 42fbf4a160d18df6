from dataclasses import replace

import pytest

from lightrft.rewards.function import Answer, Question, as_reward, each, values_of
from lightrft.rewards.table import load_reward


def spoken(answer, *, target="5", messages=({"role": "user", "content": "2 + 3?"},)):
    asked = Question(id="q", messages=list(messages), target=target, source="sums")
    return Answer(prompt=asked, group=0, token_ids=[7, 8, 9], answer=answer, finish="length")


def of_row(answer, /, **columns):
    one = spoken(answer)
    return replace(one, prompt=replace(one.prompt, columns=columns))


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


def test_any_other_parameter_is_a_field_of_the_row_and_one_with_a_default_may_be_absent():
    @each
    def odd(answer, difficulty, bonus=0.5):
        return difficulty + bonus

    assert odd([of_row("4", difficulty=2), of_row("4", difficulty=3, bonus=1)]) == [2.5, 4.0]
    with pytest.raises(
        ValueError, match="reward 'odd' asks for 'difficulty', and q has no such field; it has: level"
    ):
        odd([of_row("4", level=2)])


def test_a_view_is_not_taken_from_a_field_of_its_name():
    @each
    def right(answer, target):
        return answer == target

    assert right([of_row("5", answer="of the row", target="of the row")]) == [1.0]


def test_a_function_of_one_view_is_called_for_each_response():
    def brief(num_tokens):
        return -num_tokens

    assert as_reward(brief, "brief")([spoken("abc"), spoken("de")]) == [-3.0, -3.0]


def test_a_function_of_all_responses_gets_fields_as_lists():
    def weighted(answers, difficulty):
        return [len(a.answer) * d for a, d in zip(answers, difficulty, strict=True)]

    assert as_reward(weighted, "weighted")([of_row("ab", difficulty=2), of_row("c", difficulty=5)]) == [4, 5]


def test_a_reward_in_the_form_of_trl_gets_what_trl_gives_it():
    """The examples of TRL's documentation of GRPOTrainer, custom reward functions: texts for a text, messages for messages."""

    def reward_len(completions, **kwargs):
        return [-abs(20 - len(completion)) for completion in completions]

    def same(prompts, completions, completion_ids, ground_truth):
        assert completion_ids == [[7, 8, 9]] * len(prompts)
        contents = [completion[0]["content"] for completion in completions]
        assert all(completion[0]["role"] == "assistant" for completion in completions)
        return [float(c == gt) for c, gt in zip(contents, ground_truth, strict=True)]

    def everything(completions, **kwargs):
        assert kwargs.keys() == {"prompts", "completion_ids", "ground_truth", "level"}
        return [float(level) for level in kwargs["level"]]

    text = of_row("x" * 18, prompt="Say x", ground_truth="x", level=3)
    talk = of_row("x", prompt=[{"role": "user", "content": "Say x"}], ground_truth="x", level=4)
    assert as_reward(reward_len, "len")([text]) == [-2]
    assert as_reward(same, "same")([talk, replace(talk, answer="y")]) == [1.0, 0.0]
    assert as_reward(everything, "all")([text, talk]) == [3.0, 4.0]
    said = [
        {"role": "assistant", "content": "?"},
        {"role": "tool", "content": "!"},
        {"role": "assistant", "content": "x"},
    ]
    assert as_reward(lambda completions: [float(completions == [said])], "whole")(
        [replace(talk, said=said)]
    ) == [1.0]
    with pytest.raises(
        ValueError, match="is in TRL's form .* tells texts from conversations by the row's field `prompt`"
    ):
        as_reward(reward_len, "len")([of_row("x", question="Say x")])


def two(answers, targets):
    return [1.0] * len(answers)


def compute_score(data_source, solution_str, ground_truth, extra_info=None):  # verl's
    return 1.0


async def later(answers):
    return [1.0]


class Later:
    async def __call__(self, answers):
        return [1.0]


def logged(completions, log_metric):
    return [1.0]


def place_alone(answer, /):
    return 1.0


def lists_by_place(completions, /):
    return [len(text) for text in completions]


def length_by_place(response, /):
    return len(response)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (
            compute_score,
            "asks for 'solution_str', which is called 'answer' here. Let it take a parameter `answer`",
        ),
        (lambda completion: 1.0, "asks for 'completion', which is called 'answer' here"),
        (lambda responses: [1.0], "asks for 'responses', which is called 'answers' here"),
        (logged, "asks for 'log_metric', a part of TRL's trainer. Leave it out"),
        (place_alone, "takes 'answer' by place alone; parameters are filled by name. Remove the /"),
        (lists_by_place, "takes 'completions' by place alone"),
        (length_by_place, "asks for 'response', which is called 'answer' here"),
        (later, "is an async function"),
        (Later(), "is an async function"),
        (lambda: 1.0, "cannot be called with the responses of a task. Let it take a parameter `answer`"),
    ],
)
def test_what_could_never_be_called_rightly_is_refused_before_any_response_is_sampled(found, told):
    with pytest.raises(ValueError, match="reward 'mine'") as raised:
        as_reward(found, "mine")
    assert told in str(raised.value)


def test_a_parameter_without_a_field_is_refused_before_any_response_is_sampled():
    with pytest.raises(
        ValueError, match="reward 'two' asks for 'targets', and q has no such field; it has: no fields"
    ):
        as_reward(two, "two")([spoken("5")])


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
