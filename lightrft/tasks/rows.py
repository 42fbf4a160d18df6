"""A task of rows that a Python program holds: a list of dicts, or a datasets.Dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.sources import BadRecords, given
from lightrft.tasks.base import NoSplitError, Records, Split, Task, bare_gold, limited, records
from lightrft.tasks.table import row_format

ARGUMENTS: Mapping[Split, str] = {"train": "data", "evaluate": "evaluate"}
"""Split -> the argument with its rows, as errors call it."""


def task_of(name: str, rows: Mapping[Split, Any], arguments: Mapping[Split, str] = ARGUMENTS) -> Task:
    """The task of the rows of one split or both, in the form that tasks.format says; judged by rewards.functions.

    NoSplitError when a split is loaded that has no rows, ValueError for broken ones (tasks.on_bad_record).
    """

    def load(split: Split, config: TaskConfig, data: str, seed: int) -> Records:
        if split not in rows:
            argument = arguments[split]
            instead = ", or evaluate=False for a run without evaluation" if split == "evaluate" else ""
            raise NoSplitError(
                f"task '{name}' has no rows for {argument}, and none are split off by guess. Give {argument}=ROWS{instead}."
            )
        bad = BadRecords(config.on_bad_record)
        located = list(given(rows[split], arguments[split], bad))
        form = row_format(config.format)
        found = records(located, form, config, bad, source=name, instruction="", folder=Path.cwd())
        if not found:
            raise ValueError(f"{arguments[split]} holds no usable rows ({bad.skipped} skipped).")
        return limited(found, split, config)

    return Task(name, load, {}, bare_gold, max_tokens=0)
