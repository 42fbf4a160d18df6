import pytest

from lightrft.utils.answers import concluded, conclusion, vote


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("so \\boxed{\\frac{1}{2}} follows", "\\frac{1}{2}"),
        ("first \\boxed{1}, then \\boxed{2}", "2"),
        ("it is \\boxed{7}, and cut off: \\boxed{3", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\fbox{4}", "4"),
        ("#### 1,080", "1,080"),
        ("The answer is 5 apples.", "5"),
        ("The final answer is: $x = 5$.", "x = 5"),
        ("the answer is 3.5.", "3.5"),
        ("answer: **12**", "12"),
        ("The answer is 4. No, the answer is 6", "6"),
        ("5 - 3 = 2 left", "2"),
        ("20-13", "13"),
        ("9 - 2 = -7", "-7"),
        ("It costs $1,250.50.", "1,250.50"),
        ("I get 3/4", "3/4"),
        ("3,4", "4"),
        ("<think>\\boxed{4}</think>7 it is", "7"),
        ("<answer>x+1</answer>", "x+1"),
        ("nothing to see", None),
        ("", None),
    ],
)
def test_the_conclusion_is_what_the_answer_commits_to_last(answer, expected):
    assert conclusion(answer) == expected


def test_the_last_answer_tag_is_the_conclusion():
    assert concluded("<answer>1</answer> no <answer> 2 </answer>") == "2"


def test_without_an_answer_tag_the_conclusion_follows_the_thoughts():
    assert concluded("<think>x</think> so Paris") == "so Paris"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("\\boxed{\\frac{1}{2}}", "1/2"),
        ("The answer is 0.50", "1/2"),
        ("#### 1,080", "1080"),
        ("\\boxed{x + 1}", "x+1"),
        ("no idea", ""),
    ],
)
def test_answers_that_agree_cast_the_same_vote(answer, expected):
    assert vote(answer) == expected
