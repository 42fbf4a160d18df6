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
            raise raised(value, after)
        for mine, theirs in zip(args, after if isinstance(after, list) else (), strict=False):
            _follow(mine, theirs)
        return value

    def function(self, name: str) -> Callable[..., Any]:
        """A stand-in of a function or class of the program."""
        return lambda *args, **kwargs: self.call(None, name, args, kwargs)


def raised(described: Any, args: Any) -> Any:
    """An exception of the program: Python's own class, or one of that name which is of all the kinds that the program's is.
    RuntimeError for one that cannot be made here, such as a group of others."""
    name, kinds = described
    found = [getattr(builtins, kind, None) for kind in kinds]
    bases = tuple(one for one in found if isinstance(one, type) and issubclass(one, Exception))
    if not bases:
        return RuntimeError(name)
    try:
        made = bases[0] if name == kinds[0] else type(name, bases, {})
        try:
            return made(*args)
        except Exception:  # it wants other arguments than it keeps
            return made.__new__(made, *args)
    except Exception:
        return RuntimeError(name)


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


NAN = float("nan")
"""The one that stands for all: containers take an object for equal to itself."""


def _same(given: Any, expected: Any) -> bool:
    """Whether two values are equal as JSON would have them: tuples, and what can be gone through once, as lists, and no number as itself."""
    return [_alike(given)] == [_alike(expected)]


def _alike(value: Any) -> Any:
    """A value whose equals are equal to it."""
    if isinstance(value, list | tuple | range) or hasattr(type(value), "__next__"):
        return [_alike(one) for one in value]
    if isinstance(value, dict):
        return {_fixed(key): _alike(one) for key, one in value.items()}
    return _fixed(value)


def _fixed(value: Any) -> Any:
    """A value that can be in a set, made alike: tuples in it stay tuples."""
    if isinstance(value, tuple):
        return tuple(map(_fixed, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(_fixed, value))
    if isinstance(value, complex) and value != value:
        return (complex, _fixed(value.real), _fixed(value.imag))
    return NAN if isinstance(value, float) and value != value else value


def _passes(test: CodeType, names: dict[str, Any]) -> bool:
    try:
        exec(test, names)
    except BaseException:
        return False
    return True


def judge(job: dict[str, Any], ask: int, hear: int, report: int) -> None:
    """Reports 1 or 0 for each test as it ends and a full stop after the last, or ! and why the tests themselves are broken."""
    line = Line(ask, hear)
    names: dict[str, Any] = {"__name__": "tests", "_same": _same, "_calls": []}
    try:
        names["_calls"] = [Reader(packed, Handle).value() for packed in job["calls"]]
        texts = [
            f"assert _same({job['function']}(*_calls[{n}][0]), _calls[{n}][1])"
            for n in range(len(job["calls"]))
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
