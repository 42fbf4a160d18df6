"""Rows of code become questions with tests, and their own solutions pass."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from lightrft.config import RewardConfig, SandboxConfig, TaskConfig
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.rewards.code import PassesTests
from lightrft.sandbox.levels import levels
from lightrft.tasks.code import CODE_FORMATS, fenced, private_tests
from lightrft.tasks.table import load_task

REASONS = levels()
boxed = pytest.mark.skipif(all(REASONS.values()), reason=f"no sandbox can be had here: {REASONS}")
LCB = {
    "question_content": "Double it.",
    "starter_code": "class Solution:\n    def twice(self, n: int) -> int:",
    "public_test_cases": json.dumps([{"input": "2", "output": "4", "testtype": "functional"}]),
    "metadata": json.dumps({"func_name": "twice"}),
}
PRIVATE = json.dumps([{"input": "5", "output": "10", "testtype": "functional"}])
ROWS = {
    "mbpp": (
        {"prompt": "Add.", "code": "def sum(a, b): return a + b", "test_list": ["assert sum(1, 2) == 3"], "test_imports": []},
        "def sum(a, b): return b",
    ),
    "humaneval": (
        {"prompt": "def half(x):\n    '''Half.'''\n", "test": "def check(f):\n    assert f(4) == 2", "entry_point": "half", "canonical_solution": "    return x / 2\n"},
        "def half(x): return x",
    ),
    "leetcode": (
        {"problem": "One.", "solutions": "class Solution:\n    def f(self, x: List[int]): return x[0]", "tests": {"functional": "def check(f):\n    assert f(x=[1]) == 1\ncheck(Solution().f)"}},
        "class Solution:\n    def f(self, x): return 0",
    ),
    "stdin": (
        {"problem": "Double.", "tests": {"inputs": ["2\n"], "outputs": ["4\n"]}, "solutions": json.dumps(["print(int(input()) * 2)"])},
        "print(5)",
    ),
    "livecodebench": (
        LCB | {"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(PRIVATE))).decode(), "solution": "class Solution:\n    def twice(self, n): return 2 * n"},
        "class Solution:\n    def twice(self, n): return 4",
    ),
}  # fmt: skip


@boxed
@pytest.mark.parametrize("name", list(ROWS))
def test_the_rows_own_solution_passes_and_a_wrong_one_does_not(name):
    row, wrong = ROWS[name]
    target = CODE_FORMATS[name](row, TaskConfig()).target
    judge = PassesTests(SandboxConfig())
    assert [judge(fenced(program), target) for program in (target["solution"], wrong)] == [1.0, 0.0]


def test_cruxeval_asks_for_an_output():
    example = CODE_FORMATS["cruxeval"](
        {"code": "def f(x):\n    return x + 1", "input": "1", "output": "2"}, TaskConfig()
    )
    assert "assert f(1) == ?" in example.prompt
    assert example.target == "2"


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/lightrft-pickled",)


@pytest.mark.parametrize(
    ("held", "told"), [(Hostile(), "posix.system"), ([1], "hold a list"), (Path("a"), "pathlib")]
)
def test_a_pickle_of_anything_but_text_is_refused(held, told):
    packed = base64.b64encode(zlib.compress(pickle.dumps(held))).decode()
    with pytest.raises(ValueError, match=told):
        private_tests(packed)
    assert not Path("/tmp/lightrft-pickled").exists()


def test_a_time_limit_that_programs_may_pass_is_refused():
    with pytest.raises(ValueError, match=r"rewards.timeout_seconds=5 is too short.*sandbox.wall_seconds=10"):
        RewardRunner({"mbpp": {"tests": 1.0}}, RewardConfig(timeout_seconds=5))


def test_without_a_sandbox_the_run_is_refused():
    with pytest.raises(ValueError, match="programs of the policy cannot be run here.*sandbox.kind=none"):
        RewardRunner(
            {"mbpp": {"tests": 1.0}}, RewardConfig(workers=0), sandbox=SandboxConfig(python="/nowhere")
        )


@boxed
@pytest.mark.parametrize("name", ["mbpp", "leetcode"])
def test_gold_answers_of_real_rows_score_full_marks(name):
    data = Path(__file__).parents[4] / "shared" / "data"
    if not (data / "mbpp").is_dir():
        pytest.skip(f"{data} is not there")
    task = load_task(name)
    records = task.load("evaluate", TaskConfig(), str(data), 0)[:6]
    with RewardRunner({task.name: task.rewards}, RewardConfig()) as judge:
        report = check_gold(name, records, task.gold, judge)
    assert report.ok, str(report)


SLOW = {"knapsack": "6404180", "levenshtein": "docnoteidissentafastneverpreventsafatnessidietoncod"}
"""Tests that QuixBugs' own authors skip: four minutes, and longer than they waited."""


@boxed
def test_every_mended_program_of_quixbugs_passes_and_no_broken_one():
    """Those 31 whose tests are values; the others need objects (test_repair.py has all 40). The judge of one is a tolerance, as theirs."""
    place = Path(__file__).parents[4] / "shared" / "data" / "quixbugs" / "quixbugs_python.jsonl"
    if not place.is_file():
        pytest.skip(f"{place} is not there")
    judge, passed = PassesTests(SandboxConfig(cpu_seconds=3)), {"fixed": [], "buggy": []}
    rows = [row for row in map(json.loads, place.read_text().splitlines()) if row["json_tests"]]
    for row in rows:
        name, tests = (
            row["name"],
            [test for test in row["json_tests"] if SLOW.get(row["name"], "\0") not in str(test)],
        )
        calls = [[given if isinstance(given, list) else [given], wanted] for given, wanted in tests]
        target = {"calls": calls, "function": name}
        if name == "sqrt":
            target = {
                "tests": [f"assert abs(sqrt{(*given,)} - {wanted}) <= {given[1]}" for given, wanted in calls]
            }
        for kind, found in passed.items():
            found += [name] * (judge(fenced(row[kind]), target) == 1.0)
    assert len(rows) == 31
    assert passed == {"fixed": [row["name"] for row in rows], "buggy": []}
