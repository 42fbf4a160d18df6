import pytest

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, aime_archive, columns, gsm8k, math, svamp

CONFIG = TaskConfig()


def test_columns_takes_the_configured_fields():
    config = TaskConfig(prompt_field="q", target_field="a")
    assert columns({"q": " 2+2? ", "a": 4}, config) == Example(" 2+2? ", 4)


def test_columns_takes_a_whole_conversation():
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "2+2?"},
    ]
    assert columns({"prompt": messages, "target": "4"}, CONFIG).prompt == messages


def test_rows_without_targets_are_allowed_if_no_target_field_is_set():
    assert columns({"prompt": "Write a poem."}, TaskConfig(target_field="")) == Example("Write a poem.", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "x", "target": 1},
            r"no field 'prompt'; the row has: question, target. Set tasks.prompt_field",
        ),
        ({"prompt": None, "target": 1}, r"field 'prompt' is null"),
        (
            {"prompt": "x"},
            r"no field 'target'; the row has: prompt. Set tasks.target_field, or leave it empty",
        ),
        ({"prompt": " \n", "target": 1}, r"field 'prompt' is empty"),
        ({"prompt": 5, "target": 1}, r"field 'prompt' must be text, not int"),
        ({"prompt": [], "target": 1}, r"empty list of messages"),
        ({"prompt": [{"role": "user"}], "target": 1}, r"each message needs a role and a content"),
        (
            {"prompt": [{"role": "user", "content": ""}], "target": 1},
            r"each message needs a role and a content",
        ),
        (
            {"prompt": [{"role": "assistant", "content": "Hi"}], "target": 1},
            r"ends with the assistant's own message",
        ),
    ],
)
def test_columns_says_what_a_row_lacks(row, message):
    with pytest.raises(ValueError, match=message):
        columns(row, CONFIG)


def test_gsm8k_takes_the_number_after_the_hashes():
    assert gsm8k({"question": "How much?", "answer": "2+2 = <<2+2=4>>4\n#### $1,004"}, CONFIG) == Example(
        "How much?", "1004"
    )


def test_gsm8k_refuses_a_solution_without_hashes():
    with pytest.raises(ValueError, match="nothing after '####'"):
        gsm8k({"question": "How much?", "answer": "4"}, CONFIG)


def test_math_and_aime_targets_are_text():
    assert math({"problem": "p", "answer": "\\frac12"}, CONFIG).target == "\\frac12"
    assert math({"problem": "p", "answer": 60}, CONFIG).target == "60"
    assert aime_archive({"Question": "p", "Answer": "060"}, CONFIG) == Example("p", "060")


def test_svamp_joins_story_and_question_and_drops_the_decimal_of_whole_numbers():
    row = {"Body": "Ed had 3 hats", "Question": "How many hats?", "Answer": 3.0}
    assert svamp(row, CONFIG) == Example("Ed had 3 hats. How many hats?", "3")
