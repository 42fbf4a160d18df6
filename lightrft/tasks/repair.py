"""Records of SWE-bench's form, for the environment `repair`: a repository with a fault, what is wrong with it, and tests that tell."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, Format, asked, text_field
from lightrft.datasets.sources import Row
from lightrft.utils.patches import changes

NODE_ID = re.compile(r"(?!/)[^\s:()]+\.\w+::\S")
"""How pytest names a test: its file from the repository's folder, and what is in it."""
ASKED = "Mend the repository so that its tests pass. Say that you are done, without calling a tool, when it is mended."


def swebench_row(row: Row, config: TaskConfig) -> Example:
    """SWE-bench (https://www.swebench.com): `instance_id`, `repo`, `base_commit`, `problem_statement`, `test_patch`, `FAIL_TO_PASS`,
    `PASS_TO_PASS` (lists of node ids, also as JSON text) and, for self-checks, `patch`. ValueError for a row without tests, with tests
    that pytest does not name so (Django's and sympy's own runners do otherwise), or whose patches are no unified diffs of text."""
    fail, stay = (_names(row, name) for name in ("FAIL_TO_PASS", "PASS_TO_PASS"))
    if not fail:
        raise ValueError(
            "field 'FAIL_TO_PASS' names no test, so that nothing tells whether the repository is mended."
        )
    target: dict[str, Any] = {
        name: text_field(row, name) for name in ("instance_id", "repo", "base_commit", "test_patch")
    }
    target |= {"tests": [*fail, *stay], "patch": str(row.get("patch") or "")}
    for name in ("test_patch", "patch"):
        changes(target[name])
    return Example(asked(f"{text_field(row, 'problem_statement').strip()}\n\n{ASKED}", row), target)


def _names(row: Row, name: str) -> list[str]:
    found = row.get(name, [])
    if isinstance(found, str):
        found = json.loads(found or "[]")
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"field '{name}' must be a list of node ids, not {found!r:.80}")
    if other := [one for one in found if not NODE_ID.match(one)]:
        raise ValueError(
            f"field '{name}' names {other[0]!r:.80}, which is no node id of pytest (path/of/file.py::test): no response could pass it."
        )
    return found


FORMATS: Mapping[str, Format] = {"swebench": swebench_row}
"""Forms of rows for one's own files, with the reward `environment` and environment.name=repair."""
