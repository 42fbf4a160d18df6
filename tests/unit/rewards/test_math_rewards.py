import threading
import time

import pytest

from lightrft.rewards.math import boxed_math, choice_or_math, equal, last_number, math

SAME = [
    ("\\frac{1}{2}", "0.5"),
    ("\\dfrac12", "1/2"),
    ("-\\frac{3}{4}", "-0.75"),
    ("\\frac{-3}{4}", "-\\frac34"),
    ("10\\frac{1}{12}", "\\frac{121}{12}"),
    ("4/2", "2"),
    ("1,080", "1080"),
    ("100{,}000", "100,000"),
    ("$1,080.00", "1080"),
    ("\\$42409", "42409"),
    ("5 \\text{ cm}", "5"),
    ("12 \\text{ cm}^2", "12"),
    ("2 \\text{ euros}", "2"),
    ("50\\%", "50"),
    ("90^\\circ", "90"),
    ("\u22125", "-5"),
    ("007", "7"),
    ("(3, -1)", "(3,-1)"),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("2, 3, \\text{ and } 4", "2,3,4"),
    ("1+\\sqrt{2}", "\\sqrt{2}+1"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("k = \\frac{-33}{2}", "-\\frac{33}{2}"),
    ("x \\in [1,2]", "[1,2]"),
    ("\\text{Evelyn}", "Evelyn"),
    ("\\text{(C)}", "C"),
    ("\\infty", "\\infty"),
]
DIFFERENT = [
    ("12", "13"),
    ("-5", "5"),
    ("0.333", "\\frac{1}{3}"),
    ("(3,-1)", "(-1,3)"),
    ("[0,3)", "(0,3)"),
    ("x", "y"),
    ("", "5"),
    ("", ""),
    ("1/0", "5"),
    ("\\frac{", "5"),
]


@pytest.mark.parametrize(("answer", "target"), SAME)
def test_the_same_value_written_differently_is_equal(answer, target):
    assert equal(answer, target)


@pytest.mark.parametrize(("answer", "target"), DIFFERENT)
def test_different_values_are_not_equal(answer, target):
    assert not equal(answer, target)


@pytest.mark.parametrize("answer", ["9^{9^{9^9}}", "2^{99999}", "99999999!", "((5)!)!", "1" * 501, "9^9^9^9"])
def test_expressions_that_would_take_for_ever_are_wrong_at_once(answer):
    math(
        "\\boxed{4}", "5"
    )  # compiles patterns and builds a parser's tables, where no other test of the process has
    start = time.monotonic()
    assert math(f"\\boxed{{{answer}}}", "5") == 0.0
    assert time.monotonic() - start < 0.5


def test_a_target_too_long_to_parse_is_still_equal_to_itself():
    assert equal("x+" * 400 + "1", "x+" * 400 + "1")


def test_equivalence_works_outside_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(math("\\boxed{2\\sqrt{3}}", "\\sqrt{12}")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_only_a_box_counts_for_boxed_math():
    assert boxed_math("\\boxed{5}", "5") == 1.0
    assert boxed_math("The answer is 5", "5") == 0.0


@pytest.mark.parametrize(
    ("answer", "score"),
    [("8 + 4 = 12", 1.0), ("12 is 8 + 4", 0.0), ("12.0 dollars", 1.0), ("-12", 0.0), ("1,2", 0.0), ("", 0.0)],
)
def test_number_looks_at_the_last_number_only(answer, score):
    assert last_number(answer, "12") == score


def test_targets_may_be_numbers():
    assert math("\\boxed{145}", 145) == 1.0
    assert last_number("145", 145.0) == 1.0


@pytest.mark.parametrize(
    ("answer", "target", "score"),
    [
        ("\\boxed{C}", "C", 1.0),
        ("\\boxed{(C)}", "C", 1.0),
        ("The answer is c.", "C", 1.0),
        ("\\boxed{B}", "C", 0.0),
        ("\\boxed{5}", "C", 0.0),
        ("\\boxed{0.5}", "\\frac12", 1.0),
        ("(3, -4)", "(3,-4)", 0.0),
        ("\\boxed{(3, -4)}", "(3,-4)", 1.0),
        ("\\boxed{C}", "5", 0.0),
    ],
)
def test_letters_are_judged_as_choices_and_all_else_as_mathematics(answer, target, score):
    assert choice_or_math(answer, target) == score
