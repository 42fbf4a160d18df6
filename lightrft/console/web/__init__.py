"""Runs in a browser: a server for this machine, or one file. Both show the same page, which asks the same questions (answers.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightrft.console.web import one_file, server
from lightrft.runs.reader import Run
from lightrft.utils.shown import shown

__all__ = ["export", "serve"]

serve = server.serve


def export(runs: Sequence[Run], file: Path, mib: float) -> None:
    """Writes runs as one file, and prints its size and what it leaves out. ValueError for a size or name that cannot be."""
    left_out = one_file.export(runs, file, mib)
    print(f"{shown(file, lines=False)}: {file.stat().st_size / one_file.MIB:.2f} MiB")
    for run, told in zip(runs, left_out, strict=True):
        if told:
            print(
                f"  left out of {shown(run.folder.name, lines=False)}: {told}. A larger --export-mib keeps more."
            )
