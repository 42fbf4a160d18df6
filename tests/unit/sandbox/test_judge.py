"""Right programs pass, and no wrong one, whatever it does."""

import pytest

from lightrft.sandbox.box import Limits
from lightrft.sandbox.judge import BrokenTestsError, Calls, by_calls, by_output, same_output
from lightrft.sandbox.levels import levels, make_box
from tests.unit.sandbox.programs import CHEATS, TESTS

REASONS = levels()
pytestmark = pytest.mark.skipif(all(REASONS.values()), reason=f"no sandbox can be had here: {REASONS}")
LIMITS = Limits(cpu_seconds=2, wall_seconds=4.0)
SOME = (
    "leaves when called",
    "an int that equals everything",
    "looks for the tests in frames",
    "writes reports everywhere",
    "Python's names",
)


@pytest.fixture(scope="module")
def box():
    return make_box(LIMITS)


def test_a_right_program_passes_all_and_a_half_right_one_half(box):
    assert by_calls(box, "def add(a, b): return a + b", Calls(TESTS)).passed == [True, True, True]
    assert by_calls(box, "def add(a, b): return int(a) + b", Calls(TESTS)).passed == [True, True, False]


@pytest.mark.parametrize("name", SOME)
def test_a_program_that_cheats_fails(name, box):
    assert by_calls(box, CHEATS[name], Calls(TESTS)).share < 1


@pytest.mark.parametrize("name", sorted(set(CHEATS) - set(SOME)))
def test_every_other_program_that_cheats_fails(name, box):
    assert by_calls(box, CHEATS[name], Calls(TESTS)).share < 1


def test_values_of_all_plain_kinds_come_back_and_lists_change_in_place(box):
    values = "[None, True, -5, 10**30, 0.5, 'é', b'x', (1, 2), {3}, frozenset([4]), {'a': [1]}, 1j, range(3)]"
    program = "def same(x): return x\ndef turn(x): x.reverse()\ndef count(): yield from (1, 2)\nclass P:\n    def __init__(s): s.n = 0\n    def up(s): s.n += 1; return s.n\n"
    tests = [
        f"x = {values}\nassert same(x) == x and list(map(type, same(x))) == list(map(type, x))",
        "x = [1, 2]\nturn(x)\nassert x == [2, 1]",
        "assert list(count()) == [1, 2]",
        "p = P()\np.up()\nassert p.up() == 2",
        "try:\n    same(1, 2)\nexcept TypeError: pass\nelse: assert False",
    ]
    assert by_calls(box, program, Calls(tests)).passed == [True] * 5


def test_calls_are_compared_as_json(box):
    calls = [([[3, 1]], [1, 3]), ([[]], [])]
    tests = Calls(function="Solution().f", calls=calls, program_setup="from typing import *")
    assert by_calls(
        box, "class Solution:\n    def f(self, x: List[int]): return tuple(sorted(x))", tests
    ).passed == [True, True]


def test_what_a_generator_gives_is_compared_as_a_list(box):
    program = "def f(n):\n    yield from range(n)\n"
    assert by_calls(box, program, Calls(function="f", calls=[([3], [0, 1, 2]), ([2], [1, 0])])).passed == [
        True,
        False,
    ]


def test_tests_that_are_no_code_are_no_failure_of_the_program(box):
    with pytest.raises(BrokenTestsError, match="SyntaxError"):
        by_calls(box, "def add(a, b): return a + b", Calls(["assert ("]))


def test_a_program_that_prints_is_judged_by_its_output(box):
    pairs = [("2", "4"), ("3", "6.00"), ("3", "7")]
    assert by_output(box, "print(int(input()) * 2.0)", pairs).passed == [True, True, False]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("1 2\n", "1  2.0", True), ("a \n b", "a\nb\n", True), ("1\n2", "1 2", False), ("x", "y", False)],
)
def test_outputs_are_the_same_by_lines_and_numbers(one, other, same):
    assert same_output(one, other) is same
