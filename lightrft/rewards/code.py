"""Rewards for programs: the last fenced block of a response, judged by the tests that are the target, in a sandbox.

The target is a table with one of
  tests   texts of test code, with `setup` (code before them), `program_setup` (code before the program), `functions` (names of the
          program's functions that would otherwise be Python's own)
  calls   [arguments, expected] of `function`, as JSON has them
  pairs   [input, output] of a program that reads and writes
A program that fails, loops or is ended at a limit has failed; a sandbox that fails raises, and that is a failed reward, never a zero.
"""

from __future__ import annotations

import re
from typing import Any

from lightrft.config.rewards import RewardConfig
from lightrft.config.sandbox import SandboxConfig
from lightrft.sandbox.box import Box
from lightrft.sandbox.judge import Calls, Verdict, by_calls, by_output
from lightrft.workers.boxes import box_of, check_box

FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
KINDS = ("tests", "calls", "pairs")


class PassesTests:
    """1 if the program in the response passes all tests of the target, else 0."""

    __name__ = "tests"

    def __init__(self, sandbox: SandboxConfig) -> None:
        self.sandbox = sandbox

    def __call__(self, answer: str, target: Any) -> float:
        """SandboxError where the sandbox failed, ValueError for a target that is none."""
        return float(self.share(answer, target) == 1.0)

    def share(self, answer: str, target: Any) -> float:
        """Share of the tests that the program passes; 0 without a program."""
        program = last_block(answer)
        kind = kind_of(target)
        return judged(box_of(self.sandbox), program, target, kind).share if program.strip() else 0.0


class ShareOfTests(PassesTests):
    """The share of the target's tests that the program in the response passes."""

    __name__ = "tests_share"

    def __call__(self, answer: str, target: Any) -> float:
        """SandboxError where the sandbox failed, ValueError for a target that is none."""
        return self.share(answer, target)


def last_block(answer: str) -> str:
    """The inside of the last fenced block; empty if there is none."""
    found: list[str] = FENCED.findall(answer)
    return found[-1] if found else ""


def kind_of(target: Any) -> str:
    """The kind of tests that a target has. ValueError if it has none or several."""
    kinds = [kind for kind in KINDS if isinstance(target, dict) and target.get(kind)]
    if len(kinds) != 1:
        raise ValueError(f"the target must be a table with one of {', '.join(KINDS)}, not {target!r:.120}")
    return kinds[0]


def judged(box: Box, program: str, target: dict[str, Any], kind: str) -> Verdict:
    """The verdict of the target's tests on a program."""
    if kind == "pairs":
        return by_output(box, program, [(given, expected) for given, expected in target["pairs"]])
    calls = [(arguments, expected) for arguments, expected in target.get("calls") or ()]
    texts = {name: target.get(name) or "" for name in ("setup", "program_setup", "function")}
    return by_calls(
        box,
        program,
        Calls(target.get("tests") or (), functions=target.get("functions") or (), calls=calls, **texts),
    )


def check_sandbox(sandbox: SandboxConfig, rewards: RewardConfig) -> None:
    """ValueError where programs cannot be judged with these settings; warns where nothing protects from them."""
    seconds = rewards.timeout_seconds if rewards.workers else 0.0
    check_box(sandbox, "rewards.timeout_seconds", seconds)
