"""Several tasks under one word, for `lightrft evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SUITES: Mapping[str, Sequence[str]] = {
    "suite:mathematics": ("gsm8k", "math", "amc23", "aime:2024", "aime:2025", "olympiad_bench"),
    "suite:knowledge": ("mmlu", "mmlu_pro", "gpqa_diamond"),
    "suite:words": ("gsm8k", "svamp"),
}
"""Name -> tasks."""
PREFIX = "suite:"


def tasks_of(word: str) -> list[str]:
    """The tasks that a word names: those of a suite, those between commas, or itself. ValueError for a suite that is not there."""
    found: list[str] = []
    for name in word.split(","):
        if name.startswith(PREFIX) and name not in SUITES:
            raise ValueError(
                f"no suite named '{name}'. There are: {', '.join(SUITES)}; or name tasks, gsm8k,svamp."
            )
        found += [task for task in SUITES.get(name, [name]) if task not in found]
    if not all(found):
        raise ValueError(
            f"'{word}' names a task that is empty. Write the names with one comma between, gsm8k,svamp."
        )
    return found
