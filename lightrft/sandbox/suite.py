"""Judges a changed repository by tests of its own, named by node ids as pytest has them, in a box that nothing else has used.

The files of the tests, and all that tells pytest how to run them, are restored before: what a program wrote there does not count. A
test that is not reported has failed, whatever the exit code or the printed words say. Program and tests share one process, as they do
under SWE-bench (https://arxiv.org/abs/2310.06770): see docs/sandbox.md for what that leaves open.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath

from lightrft.sandbox.box import Box, compiled
from lightrft.sandbox.judge import BrokenTestsError, Verdict
from lightrft.sandbox.lifetime import SandboxError, finish

STEERING = frozenset(
    ["conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "pyproject.toml", "setup.cfg", "tox.ini",
     "sitecustomize.py", "usercustomize.py"]
)  # fmt: skip
"""Files that tell pytest, or Python, what to do before a test runs."""


def judged(box: Box, files: Mapping[str, bytes], tests: Sequence[str], packages: int = 0) -> Verdict:
    """The tests that these files pass. `box`: one `with_pytest`, and how many folders of packages it has besides. SandboxError if the
    box failed, BrokenTestsError where there is no test or no pytest."""
    if not tests:
        raise BrokenTestsError("there is no test.")
    word = secrets.token_hex(16).encode()
    secret, report = os.pipe(), os.pipe()
    try:
        os.write(secret[1], word)
        call = f"run({list(tests)!r}, {paths_of(packages)!r}, {secret[0]}, {report[1]})"
        code = compiled(box.python, _text())
        started = box.start([code, call], channels=(secret[0],), report=report, files=files)
    except BaseException:
        os.close(report[0])
        raise
    finally:
        for descriptor in (*secret, report[1]):
            os.close(descriptor)
    finish([started], box.limits)
    outcome, said = started.outcome, bytes(started.said["report"])
    assert outcome is not None
    if said.startswith(b"!"):
        raise BrokenTestsError(f"pytest does not run in the box: {said[1:].decode('utf-8', 'replace')}.")
    marks = said[len(word) :].decode("ascii", "replace")
    if (
        outcome.status != "ended"
        or not said.startswith(word)
        or not re.fullmatch(f"[01]{{{len(tests)}}}", marks)
    ):
        return Verdict([False] * len(tests), outcome.error[:300] or f"the tests did not end: {outcome.why}")
    return Verdict([mark == "1" for mark in marks], "a test failed" if "0" in marks else "")


def restored(
    base: Mapping[str, bytes], changed: Mapping[str, bytes], gold: Mapping[str, bytes]
) -> dict[str, bytes]:
    """What is judged: the changed files, but for those that steer tests, as `base` has them, and the files of the tests (`gold`)."""
    fixed = {name: content for name, content in base.items() if steers(name)} | dict(gold)
    folders = {str(parent) for name in fixed for parent in PurePosixPath(name).parents}
    free = (name for name in changed if name not in folders and not steers(name))
    kept = {n: changed[n] for n in free if not any(str(p) in fixed for p in PurePosixPath(n).parents)}
    return kept | fixed


def steers(name: str) -> bool:
    """Whether a file tells pytest or Python what to do."""
    path = PurePosixPath(name)
    return (
        path.name in STEERING
        or path.suffix == ".pth"
        or any(part.endswith((".dist-info", ".egg-info")) for part in path.parts)
    )


def with_pytest(box: Box, packages: Sequence[str] = ()) -> Box:
    """The box, in which pytest and the packages of these folders can be read as well. SandboxError where a box has no folder to write in,
    ValueError without pytest."""
    if box.kind != "bubblewrap":
        raise SandboxError(
            f"a repository needs a box with a folder to write in, which sandbox.kind=bubblewrap alone has; here is {box.kind}. Install bubblewrap."
        )
    *others, own = paths_of(len(packages))
    held = {place: f"{own}/{Path(place).name}" for place in pytest_files()} | dict(
        zip(packages, others, strict=True)
    )
    return Box(box.limits, box.kind, box.python, held)


def paths_of(packages: int) -> list[str]:
    """Where a box has so many folders of packages, and last pytest: places that tell nothing of this machine."""
    return [*(f"/packages/{number}" for number in range(packages)), "/packages/pytest"]


@cache
def pytest_files() -> tuple[str, ...]:
    """Files and folders of pytest and of what it needs. ValueError if it is not installed."""
    found, names, left = dict[str, None](), set[str](), ["pytest"]
    while left:
        name = left.pop()
        if name in names:
            continue
        names.add(name)
        one = _distribution(name)
        tops = {str(file).split("/")[0] for file in one.files or () if not str(file).startswith("..")}
        found |= dict.fromkeys(str(one.locate_file(top)) for top in sorted(tops - {"__pycache__"}))
        left += [re.split(r"[^\w.-]", need)[0] for need in one.requires or () if ";" not in need]
    return tuple(found)


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"tests of repositories are run by pytest, and '{name}' is not installed: pip install pytest."
        ) from None


@cache
def _text() -> str:
    return Path(__file__).with_name("running.py").read_text(encoding="utf-8")
