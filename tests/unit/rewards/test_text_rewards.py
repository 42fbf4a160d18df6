import pytest

from lightrft.rewards.text import (
    answer_tags,
    choice,
    exact,
    json_fields,
    json_keys,
    json_object,
    json_only,
    repetition,
    same_kind,
    tags,
    thousand_tokens,
    words,
)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("<think>hm</think><answer>4</answer>", 1.0),
        ("\n<think>a\nb</think>\n<answer>4</answer>\n", 1.0),
        ("<think></think><answer>4</answer>", 0.0),
        ("<think>hm</think>4", 0.0),
        ("<answer>4</answer><think>hm</think>", 0.0),
        ("<think>hm</think><answer>4</answer> and more", 0.0),
        ("<think>a</think><think>b</think><answer>4</answer>", 0.0),
        ("<think>hm</think><answer>4</answer><answer>5</answer>", 0.0),
    ],
)
def test_format_wants_each_tag_once_in_order_and_nothing_outside(answer, score):
    assert tags(answer) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("<answer>4</answer>", 1.0),
        (" <answer>a\nb</answer>\n", 1.0),
        ("<answer></answer>", 0.0),
        ("4", 0.0),
        ("It is <answer>4</answer>", 0.0),
        ("<answer>4</answer><answer>5</answer>", 0.0),
    ],
)
def test_answer_tags_want_one_answer_and_nothing_outside(answer, score):
    assert answer_tags(answer) == score


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("dog bark", 1.0),
        ("Dog  bark.", 1.0),
        ("**Dog bark**", 1.0),
        ("I hear a cat. <answer>Dog Bark</answer>", 1.0),
        ("<think>a cat?</think> dog-bark", 1.0),
        ("So it is \\boxed{\\text{dog bark}}.", 1.0),
        ("dog", 0.0),
        ("dog bark or rain", 0.0),
        ("dogbark", 0.0),
        ("", 0.0),
    ],
)
def test_words_are_compared_without_case_and_marks(answer, score):
    assert words(answer, "dog bark") == score


def test_no_word_is_never_right():
    assert words("...", "?") == 0.0


def test_exact_match_ignores_blanks_only():
    assert exact(" New   York\n", "New York") == 1.0
    assert exact("<answer>New York</answer>", "New York") == 1.0
    assert exact("new york", "New York") == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("B", 1.0),
        ("(B)", 1.0),
        ("**B**", 1.0),
        ("B.", 1.0),
        ("The answer is (b).", 1.0),
        ("I first thought A, but the correct answer is B", 1.0),
        ("\\boxed{B}", 1.0),
        ("\\boxed{\\text{B}}", 1.0),
        ("Answer: B) because it is larger", 1.0),
        ("(A) is wrong, so (B)", 1.0),
        ("(B) is wrong, so (A)", 0.0),
        ("A", 0.0),
        ("Because", 0.0),
        ("", 0.0),
    ],
)
def test_choice_takes_the_last_letter_committed_to(answer, score):
    assert choice(answer, "B") == score


def test_same_kind_is_the_share_of_characters_of_the_asked_kind():
    assert same_kind("abC1", "small") == 0.5
    assert same_kind("abC1", "digit") == 0.25
    assert same_kind("", "digit") == 0.0
    assert same_kind("\u00e9\u0663", "small") == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"name": "Ida", "age": 40}', 1.0),
        ('\n{\n  "age": 40,\n  "name": "Ida"\n}\n', 1.0),
        ('{"name": "Ida", "age": "40"}', 0.0),
        ('{"name": "Ida"}', 0.0),
        ('{"name": "Ida", "age": 40} This is JSON.', 1.0),
        ('```json\n{"name": "Ida", "age": 40}\n```', 1.0),
        ('{"name": "Ida", "age": 41} {"name": "Ida", "age": 40}', 0.0),
        ('{"name": "Ida", "age": 40', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_wants_the_first_object_in_the_answer_to_be_the_target(answer, score):
    assert json_object(answer, {"name": "Ida", "age": 40}) == score


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"name": "Ida", "age": 40}', 1.0),
        ('{"name": "Ida"}', 0.5),
        ('{"name": "Ida", "age": 40, "city": "Oslo", "job": "cook"}', 0.5),
        ('{"name": {"first": "Ida"}, "age": 41}', 0.0),
        ("Ida is 40", 0.0),
    ],
)
def test_json_fields_is_the_share_of_right_fields_among_all_that_are_wanted_or_given(answer, share):
    assert json_fields(answer, {"name": "Ida", "age": 40}) == share


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"age": null, "name": "no"}', 1.0),
        ('so: {"name": "Ida"}', 0.5),
        ('{"name": "Ida", "age": 40, "city": "Oslo", "job": "cook"}', 0.5),
        ('{"person": {"name": "Ida", "age": 40}}', 0.0),
        ("Ida is 40", 0.0),
    ],
)
def test_json_keys_is_the_share_of_right_keys_whatever_their_values(answer, share):
    assert json_keys(answer, {"name": "Ida", "age": 40}) == share


@pytest.mark.parametrize(
    ("answer", "score"),
    [('{"a": 1}', 1.0), ('\n{"a": 1} ', 1.0), ('Here: {"a": 1}', 0.0), ("3", 0.0), ("", 0.0)],
)
def test_json_only_wants_nothing_beside_the_object(answer, score):
    assert json_only(answer, None) == score


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("a b c A B c", 0.25),
        ("one two three four", 0.0),
        ("no no no no no", 2 / 3),
        ("too short", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_is_the_share_of_runs_of_three_words_seen_before(answer, share):
    assert repetition(answer) == pytest.approx(share)


def test_length_counts_thousands_of_tokens():
    assert thousand_tokens(250) == 0.25
