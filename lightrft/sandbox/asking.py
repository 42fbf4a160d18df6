"""The tests' side: runs test code over stand-ins of the program's functions and reports what passed. Sent as text behind plain.py."""

from __future__ import annotations

import builtins
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import CodeType
    from typing import Any

    from lightrft.sandbox.plain import Handle, Reader, Writer, receive, send

USUAL = frozenset(
    [
        "bisect",
        "cmath",
        "collections",
        "copy",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "heapq",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "random",
        "re",
        "statistics",
        "string",
        "sys",
        "time",
        "typing",
    ]
)
"""Modules that test code often names without an import."""


class Gone(BaseException):
    """The program has ended or speaks no sense; no Exception, since test code may catch those."""


class Stub(Handle):
    """An object of the program, here: its methods are asked for over the pipe."""

    def __init__(self, line: Line, number: int, truth: bool) -> None:
        super().__init__(number, truth)
        self.line = line

    def __bool__(self) -> bool:
        return self.truth

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.line.call(self.number, name, args, kwargs)


class Line:
    """The two pipes to the program."""

    def __init__(self, ask: int, hear: int) -> None:
        self.ask, self.hear = ask, hear

    def call(self, owner: int | None, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the program's function gives; lists, dicts and sets among the arguments change as the program changed them."""
        writer = Writer(_unsendable)
        writer.put([owner, name, list(args), kwargs])
        try:
            send(self.ask, b"".join(writer.parts))
            kind, value, after = Reader(
                receive(self.hear), lambda number, truth: Stub(self, number, truth)
            ).value()
        except (
            EOFError,
            OSError,
            ValueError,
            LookupError,
            TypeError,
            MemoryError,
            RecursionError,
            OverflowError,
        ):
            raise Gone from None
        if kind != "r":
            error = getattr(builtins, str(value), None)
            raise error() if isinstance(error, type) and issubclass(error, Exception) else RuntimeError()
        for mine, theirs in zip(args, after if isinstance(after, list) else (), strict=False):
            _follow(mine, theirs)
        return value

    def function(self, name: str) -> Callable[..., Any]:
        """A stand-in of a function or class of the program."""
        return lambda *args, **kwargs: self.call(None, name, args, kwargs)


def _unsendable(value: Any) -> tuple[int, bool]:
    raise TypeError(f"a test gives the program a {type(value).__name__}")


def _follow(mine: Any, theirs: Any) -> None:
    if type(mine) is not type(theirs) or not isinstance(mine, list | dict | set):
        return
    if isinstance(mine, list):
        mine[:] = theirs
    else:
        mine.clear()
        mine.update(theirs)


def _names(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for inner in code.co_consts:
        if isinstance(inner, type(code)):
            found |= _names(inner)
    return found


def _alike(value: Any) -> Any:
    """A value with tuples, and what can be gone through once, as lists, as JSON would have it."""
    if isinstance(value, list | tuple) or hasattr(type(value), "__next__"):
        return [_alike(one) for one in value]
    return {key: _alike(one) for key, one in value.items()} if isinstance(value, dict) else value


def _passes(test: CodeType, names: dict[str, Any]) -> bool:
    try:
        exec(test, names)
    except BaseException:
        return False
    return True


def judge(job: dict[str, Any], ask: int, hear: int, report: int) -> None:
    """Reports 1 or 0 for each test as it ends and a full stop after the last, or ! and why the tests themselves are broken."""
    line = Line(ask, hear)
    names: dict[str, Any] = {"__name__": "tests", "_alike": _alike}
    try:
        texts = [
            f"assert _alike({job['function']}(*{arguments!r})) == {_alike(expected)!r}"
            for arguments, expected in job["calls"]
        ]
        codes = [compile(text, "tests.py", "exec") for text in [*job["tests"], *texts]]
        for name in set().union(*map(_names, codes)) if codes else ():
            if name in USUAL:
                names[name] = __import__(name)
            elif not hasattr(builtins, name):
                names.setdefault(name, line.function(name))
        names.update({name: line.function(name) for name in job["functions"]})
        exec(compile(job["setup"], "setup.py", "exec"), names)
    except BaseException as error:
        os.write(report, f"!{type(error).__name__}: {error}".encode("utf-8", "replace")[:400])
        return
    for code in codes:
        os.write(report, b"1" if _passes(code, names) else b"0")
    os.write(report, b".")
