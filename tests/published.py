"""Functions of other programs, taken out of the files of their installed packages: to compare with, without all that they import."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest


def published(package: str, file: str, names: tuple[str, ...], needs: Mapping[str, Any]) -> list[Any]:
    """The functions with these names of a file of a package, given what else they need by name. The test is skipped without the package."""
    try:
        place = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        pytest.skip(f"the package {package} is not installed (pip install --no-deps {package})")
    tree = ast.parse(place.read_text(encoding="utf-8"))
    tree.body = [part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name in names]
    room: dict[str, Any] = dict(needs)
    exec(compile(tree, str(place), "exec"), room)
    return [room[name] for name in names]
