"""Judges a program by tests in two boxes: the program in one, the tests in the other, plain values between them.

What is expected never enters the program's box, and the report comes by a pipe that only the tests' box has: neither an exit code nor a
printed word of the program counts. Programs that read and write are judged by what they print for an input.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

from lightrft.sandbox.box import Box, compiled
from lightrft.sandbox.lifetime import Outcome, SandboxError, Started, finish
from lightrft.sandbox.plain import Writer

MOST_DIGITS = 400
"""Characters of a number that is compared as one; a longer text is compared as text."""


@dataclass(frozen=True)
class Calls:
    """Tests that call functions of a program."""

    tests: Sequence[str] = ()
    """Test code, each text one test: `assert f(2) == 4`, or a function and its call. It passes unless it raises."""
    setup: str = ""
    """Test code before the first test, such as imports."""
    program_setup: str = ""
    """Code before the program, such as imports that its authors are promised."""
    functions: Sequence[str] = ()
    """Names of the program's functions that would otherwise be Python's own, such as `sum`."""
    function: str = ""
    """What `calls` call: `f`, or `Solution().f`."""
    calls: Sequence[tuple[Sequence[Any], Any]] = ()
    """Arguments and what is expected, as JSON has them: tuples and generators count as lists."""


@dataclass(frozen=True)
class Verdict:
    """The tests that a program passed, in their order, and why not the others."""

    passed: list[bool] = field(default_factory=list)
    why: str = ""

    @property
    def share(self) -> float:
        """Share of tests that it passed."""
        return sum(self.passed) / len(self.passed) if self.passed else 0.0


class BrokenTestsError(ValueError):
    """The tests themselves cannot be run, whatever the program."""


def by_calls(box: Box, program: str, tests: Calls) -> Verdict:
    """The tests of its functions that a program passes. SandboxError if a box failed, BrokenTestsError for tests that are no code."""
    count = len(tests.tests) + len(tests.calls)
    if not count:
        raise BrokenTestsError("there is no test.")
    job = {
        "tests": list(tests.tests),
        "setup": tests.setup,
        "functions": list(tests.functions),
        "function": tests.function,
        "calls": [_packed(list(arguments), expected) for arguments, expected in tests.calls],
    }
    ask, answer, report = os.pipe(), os.pipe(), os.pipe()
    boxes: list[Started] = []
    try:
        serving = f"serve({tests.program_setup!r}, {program!r}, {ask[0]}, {answer[1]})"
        judging = f"judge({job!r}, {ask[1]}, {answer[0]}, {report[1]})"
        sides = [compiled(box.python, _text(side)) for side in ("answering", "asking")]
        boxes.append(box.start([sides[0], serving], channels=(ask[0], answer[1])))
        alone = Box(replace(box.limits, processes=0), box.kind, box.python)  # tests start no processes
        boxes.append(alone.start([sides[1], judging], channels=(ask[1], answer[0]), report=report))
    except BaseException:
        if len(boxes) < 2:
            os.close(report[0])
        finish_quietly(boxes, box)
        raise
    finally:
        for descriptor in (*ask, *answer, report[1]):
            os.close(descriptor)
    finish(boxes, box.limits, until=boxes[1])
    return _verdict(boxes, count)


def _packed(arguments: list[Any], expected: Any) -> bytes:
    """A call and what is expected, as bytes: what Python writes of a value is no code where that holds inf or nan."""

    def refuse(value: Any) -> tuple[int, bool]:
        raise BrokenTestsError(f"a call holds a {type(value).__name__}, which is no plain value.")

    writer = Writer(refuse)
    try:
        writer.put((arguments, expected))
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, BrokenTestsError):
            raise
        raise BrokenTestsError(f"a call cannot be sent: {error}.") from None
    return b"".join(writer.parts)


def finish_quietly(boxes: Sequence[Started], box: Box) -> None:
    """Ends boxes that were started in vain."""
    for one in boxes:
        one.over = "wall"
        with suppress(SandboxError):
            finish([one], box.limits)


def _verdict(boxes: Sequence[Started], count: int) -> Verdict:
    program, tests = (one.outcome for one in boxes)
    assert program is not None
    assert tests is not None
    said = boxes[1].said["report"].decode("utf-8", "replace")
    if said.startswith("!"):
        raise BrokenTestsError(f"the tests cannot be run: {said[1:]}.")
    passed = [mark == "1" for mark in said.rstrip(".")]
    missing = count - len(passed)
    return Verdict(passed + [False] * missing, "" if all(passed) and not missing else _reason(program, tests))


def _reason(program: Outcome, tests: Outcome) -> str:
    over = next((one.why for one in (program, tests) if one.status in ("cpu", "wall", "output")), "")
    return over or (program.error or tests.error)[:300] or "a test failed"


def by_output(box: Box, program: str, pairs: Sequence[tuple[str, str]]) -> Verdict:
    """The inputs that a program which reads and writes answers as expected; all of them share the box's wall time, and none is tried after
    one that ran out of time. SandboxError if a box failed."""
    if not pairs:
        raise BrokenTestsError("there is no test.")
    passed, why, began = [], "", time.monotonic()
    for given, expected in pairs:
        left = box.limits.wall_seconds - (time.monotonic() - began)
        if left <= 0:
            why = "its time was up"
            break
        outcome = Box(replace(box.limits, wall_seconds=left), box.kind, box.python).run(program, given)
        passed.append(outcome.status == "ended" and same_output(outcome.stdout, expected))
        if not passed[-1]:
            over = outcome.status not in ("ended", "failed")
            why = why or (outcome.why if over else outcome.error or "it printed something else")
        if outcome.status in ("cpu", "wall"):
            break
    return Verdict(passed + [False] * (len(pairs) - len(passed)), why)


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs have the same lines, blanks at their ends aside; lines are also the same if their words are equal numbers."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (printed, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(one: str, other: str) -> bool:
    if one == other:
        return True
    words, others = one.split(), other.split()
    return len(words) == len(others) and all(map(_same_word, words, others))


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    if max(len(one), len(other)) > MOST_DIGITS:
        return False
    try:
        ours, theirs = Decimal(one), Decimal(other)
        return ours == theirs or (ours.is_qnan() and theirs.is_qnan())
    except InvalidOperation:
        return False


@cache
def _text(side: str) -> str:
    """The code of one side, behind that of plain values."""
    texts = [Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in ("plain", side)]
    return texts[0] + texts[1].replace("from __future__ import annotations\n", "", 1)
