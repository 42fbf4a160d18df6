"""Right programs pass, and no wrong one, whatever it does."""

import pytest

from lightrft.sandbox import box as box_module
from lightrft.sandbox.judge import BrokenTestsError, Calls, by_calls, by_output, same_output
from lightrft.sandbox.levels import levels, make_box
from lightrft.sandbox.lifetime import Limits, SandboxError
from tests.unit.sandbox.programs import CHEATS, TESTS

REASONS = levels()
pytestmark = pytest.mark.skipif(all(REASONS.values()), reason=f"no sandbox can be had here: {REASONS}")
NAN, INF = float("nan"), float("inf")
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


@pytest.mark.parametrize("kind", [kind for kind, why in REASONS.items() if not why])
def test_tests_that_end_before_the_program_is_confined_are_heard(kind, monkeypatch):
    """Tests that need no call can be over first: the box of the program has then not failed."""
    late = box_module._text("inside.py").replace(
        "    try:\n        confine",
        "    if 'serve(' in job['sources'][1]: __import__('time').sleep(0.7)\n    try:\n        confine",
    )
    monkeypatch.setattr(box_module, "_text", lambda _: late)
    assert "sleep(0.7)" in late
    for _ in range(3):
        assert by_calls(make_box(LIMITS, kind), "", Calls(["assert True"])).passed == [True]


def test_a_program_that_is_never_confined_is_a_failure_of_the_sandbox(monkeypatch, box):
    late = box_module._text("inside.py").replace(
        "    try:\n        confine",
        "    if 'serve(' in job['sources'][1]: os._exit(3)\n    try:\n        confine",
    )
    monkeypatch.setattr(box_module, "_text", lambda _: late)
    for tests in (["assert True"], TESTS):
        with pytest.raises(SandboxError, match="could not be confined"):
            by_calls(box, "", Calls(tests))


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


@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        (NAN, "float('nan')", "0.0"),
        (INF, "float('inf')", "-float('inf')"),
        ([1, [NAN, INF]], "(1, [float('nan'), 1e999])", "(1, [float('nan'), 1.0])"),
        (
            {"a": NAN, "b": (NAN,)},
            "{'b': [float('nan')], 'a': float('nan')}",
            "{'a': float('nan'), 'b': [0]}",
        ),
        ({NAN: 1, (NAN, 2): 3}, "{(float('nan'), 2): 3, float('nan'): 1}", "{float('nan'): 1, (2, 2): 3}"),
        ({1.0, NAN}, "frozenset([float('nan'), 1])", "{1.0}"),
        (complex(NAN, 2), "complex(float('nan'), 2)", "complex(float('nan'), 3)"),
        (complex(1, INF), "complex(1, 1e999)", "complex(1, float('nan'))"),
        ([0, 1], "range(2)", "range(3)"),
        (-0.0, "0", "1e-300"),
    ],
)
def test_calls_know_numbers_that_equal_nothing(expected, right, wrong, box):
    tests = Calls(function="f", calls=[([expected], expected), ([0], expected)])
    program = f"def f(x): return x if x != 0 else {right}\n"
    assert by_calls(box, program, tests).passed == [True, True]
    assert by_calls(box, f"def f(x): return {wrong}", tests).passed == [False, False]


def test_an_expected_object_is_a_fault_of_the_tests(box):
    with pytest.raises(BrokenTestsError, match="a call holds a object"):
        by_calls(box, "def f(x): return x", Calls(function="f", calls=[([1], object())]))


EXCEPTIONS = """
class Own(KeyError, ValueError):
    def __init__(self, one, *, two): super().__init__(one)
class Blank(Exception):
    def __new__(cls): return super().__new__(cls, object())
def f(n):
    if n == 0: b'\\xff'.decode('utf-8')
    if n == 1: raise Own('x', two=2)
    if n == 2: raise ExceptionGroup('two', [ValueError(1), TypeError()])
    if n == 3: open('/nowhere/at/all')
    if n == 4: raise Blank
    if n == 5: return next(iter(()))
    raise SystemExit(0)
"""


def test_an_exception_arrives_with_its_name_kind_and_arguments(box):
    def test(n, kind, more="True"):
        return f"try: f({n})\nexcept {kind} as e:\n    assert {more}, repr(e)\nelse: assert False"

    tests = [
        test(0, "UnicodeDecodeError", "e.object == b'\\xff' and e.start == 0"),
        test(1, "ValueError", "isinstance(e, KeyError) and type(e).__name__ == 'Own' and e.args == ('x',)"),
        test(2, "RuntimeError", "e.args == ('ExceptionGroup',)"),  # what it holds stays in the box
        test(3, "FileNotFoundError", "e.errno == 2"),
        test(4, "Exception", "type(e).__name__ == 'Blank'"),
        test(5, "StopIteration", "e.value is None"),
        test(6, "RuntimeError", "e.args == ('SystemExit',)"),
    ]
    assert by_calls(box, EXCEPTIONS, Calls(tests)).passed == [True] * 7


def test_tests_that_are_no_code_are_no_failure_of_the_program(box):
    with pytest.raises(BrokenTestsError, match="SyntaxError"):
        by_calls(box, "def add(a, b): return a + b", Calls(["assert ("]))


def test_a_program_that_prints_is_judged_by_its_output(box):
    pairs = [("2", "4"), ("3", "6.00"), ("3", "7")]
    assert by_output(box, "print(int(input()) * 2.0)", pairs).passed == [True, True, False]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1 2\n", "1  2.0", True),
        ("nan -inf", "NaN -Infinity", True),
        ("nan", "inf", False),
        ("a \n b", "a\nb\n", True),
        ("1\n2", "1 2", False),
        ("x", "y", False),
    ],
)
def test_outputs_are_the_same_by_lines_and_numbers(one, other, same):
    assert same_output(one, other) is same
