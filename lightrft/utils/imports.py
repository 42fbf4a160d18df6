"""Names that users give: a built-in, an import path, or a file; and packages that only some users need."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from lightrft.utils import inline
from lightrft.utils.paths import expanded

T = TypeVar("T")
_FORBIDDEN: list[str] = []
"""Why code that settings name is not run at present, the innermost block last."""


@contextmanager
def without_code(why: str) -> Iterator[None]:
    """Inside, code that settings name is refused with a ValueError that ends with `why`, which says how to allow it."""
    _FORBIDDEN.append(why)
    try:
        yield
    finally:
        _FORBIDDEN.pop()


def resolve(table: Mapping[str, T], name: str, what: str) -> T:
    """The built-in called `name`, or what 'package.module:attribute', 'path/to/file.py:attribute' or 'inline:NAME' names.

    `what` is the noun for error messages ("loss"). Raises ValueError saying what exists and what was perhaps meant.
    """
    if name in table:
        return table[name]
    if inline.is_inline(name):
        given: T = inline.find(name, what)
        return given
    if ":" in name:
        place, attribute = name.rsplit(":", 1)
        module = load_file(place) if place.endswith(".py") else _import(place, name, what)
        try:
            found: Any = module
            for part in attribute.split("."):
                found = getattr(found, part)
        except AttributeError:
            raise ValueError(
                f"{what} '{name}': {place} has no '{attribute}'.{_perhaps(attribute, dir(module))}"
            ) from None
        result: T = found
        return result
    raise ValueError(
        f"no {what} named '{name}'.{_perhaps(name, table)}\n"
        f"  built in: {', '.join(sorted(table))}.  Your own: 'package.module:name' or 'path/to/file.py:name'."
    )


def import_all(names: Iterable[str]) -> None:
    """Imports modules and files for what they do on import, such as registering a model class."""
    for name in names:
        if name.endswith(".py"):
            load_file(name)
        else:
            _import(name, name, "import")


def load_file(path: str) -> ModuleType:
    """The module in a Python file, loaded once; importable afterwards under a name made from its path."""
    _check_allowed(path)
    file = expanded(path, "file").resolve()
    if not file.is_file():
        raise ValueError(f"no file '{path}' (looked for {file}).")
    name = "lightrft_file_" + "".join(c if c.isalnum() else "_" for c in str(file))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def require(module: str, extra: str, instead: str = "") -> ModuleType:
    """An optional package of an extra; RuntimeError with the command that installs it, and what to use instead."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        # Here, since worker processes import this module, and seldom need that.
        from lightrft.utils.extras import install_command

        other = f", or {instead}" if instead else ""
        raise RuntimeError(f"{module} is not installed: {install_command(extra)}{other}.") from None


def _check_allowed(name: str) -> None:
    if _FORBIDDEN and not name.startswith("lightrft."):
        raise ValueError(f"the settings name code, {name}. {_FORBIDDEN[-1]}")


def _import(place: str, name: str, what: str) -> ModuleType:
    _check_allowed(name)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and not place.startswith(error.name):
            raise
        raise ValueError(
            f"{what} '{name}': there is no module '{place}'. Is it installed, or in the current folder?"
        ) from None


def _perhaps(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
