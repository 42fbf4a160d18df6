"""Functions of other programs, taken out of the files of their installed packages or checkouts: to compare with, without all that they import."""

from __future__ import annotations
import __future__

import ast
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

CHECKOUTS = "PEER_CHECKOUTS"
"""Environment variable: a folder with checkouts of programs that are no packages, each by its name."""


def published(package: str, file: str, names: tuple[str, ...], needs: Mapping[str, Any]) -> list[Any]:
    """The functions with these names of a file of a package, given what else they need by name. The test is skipped without the package."""
    try:
        place = Path(str(distribution(package).locate_file(file)))
    except PackageNotFoundError:
        pytest.skip(f"the package {package} is not installed (pip install --no-deps {package})")
    return functions(place, names, needs)


def checked_out(program: str, file: str, names: tuple[str, ...], needs: Mapping[str, Any]) -> list[Any]:
    """The same of a file of a checkout in $PEER_CHECKOUTS. The test is skipped without it."""
    place = Path(os.environ.get(CHECKOUTS) or os.devnull, program, file)
    if not place.is_file():
        pytest.skip(f"no checkout of {program} in ${CHECKOUTS}")
    return functions(place, names, needs)


def functions(place: Path, names: tuple[str, ...], needs: Mapping[str, Any]) -> list[Any]:
    """What is defined so in a file; a method is named with its class, Class.method, and returned as a plain function."""
    tree = ast.parse(place.read_text(encoding="utf-8"))
    found = dict(_defined(tree.body))
    tree.body = [found[name] for name in names]
    room: dict[str, Any] = dict(needs)
    flags = __future__.annotations.compiler_flag  # what they annotate with is not needed
    exec(compile(tree, str(place), "exec", flags=flags), room)
    return [room[name.rpartition(".")[2]] for name in names]


def _defined(body: list[ast.stmt], of: str = "") -> Iterator[tuple[str, ast.stmt]]:
    for part in body:
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
            yield of + part.name, part
        elif isinstance(part, ast.ClassDef):
            yield from _defined(part.body, f"{part.name}.")
