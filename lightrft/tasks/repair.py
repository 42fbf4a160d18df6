"""Records of SWE-bench's form, for the environment `repair`: a repository with a fault, what is wrong with it, and tests that tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.formats import Example, Format, text_field
from lightrft.datasets.sources import Row
from lightrft.utils.patches import changes

ASKED = "Mend the repository so that its tests pass. Say that you are done, without calling a tool, when it is mended."


def swebench_row(row: Row, config: TaskConfig) -> Example:
    """SWE-bench (https://www.swebench.com): `instance_id`, `repo`, `base_commit`, `problem_statement`, `test_patch`, `FAIL_TO_PASS`,
    `PASS_TO_PASS` (lists of node ids, also as JSON text) and, for self-checks, `patch`. ValueError for a row without tests, or whose
    patches are no unified diffs of text."""
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
    return Example(f"{text_field(row, 'problem_statement').strip()}\n\n{ASKED}", target)


def _names(row: Row, name: str) -> list[str]:
    found = row.get(name, [])
    if isinstance(found, str):
        found = json.loads(found or "[]")
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"field '{name}' must be a list of node ids, not {found!r:.80}")
    return found


FORMATS: Mapping[str, Format] = {"swebench": swebench_row}
"""Forms of rows for one's own files, with the reward `environment` and environment.name=repair."""
