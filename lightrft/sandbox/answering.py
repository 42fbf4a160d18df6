"""The program's side: runs it, then answers calls of its functions. Sent as text behind plain.py; it knows no test and no expected value."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from lightrft.sandbox.plain import Reader, Writer, receive, send

OBJECTS: list[Any] = []


def keep(value: Any) -> tuple[int, bool]:
    """The number under which an object that is not plain is known from now on, and whether it is true."""
    OBJECTS.append(value)
    return len(OBJECTS) - 1, bool(value)


def answer(names: dict[str, Any], message: bytes) -> bytes:
    """What a call gives, with its arguments afterwards, or the name of what it raised."""
    writer = Writer(keep)
    try:
        owner, name, args, kwargs = Reader(message, lambda number, _: OBJECTS[number]).value()
        function = names[name] if owner is None else getattr(OBJECTS[owner], name)
        result = function(*args, **kwargs)
        writer.put(["r", result, args])
    except BaseException as error:
        writer = Writer(keep)
        try:
            writer.put(["e", described(error), list(error.args)])
        except BaseException:  # what it was made of cannot be sent
            writer = Writer(keep)
            writer.put(["e", described(error), []])
    return b"".join(writer.parts)


def described(error: BaseException) -> list[Any]:
    """Name of an exception's class, and Python's own classes that it is one of, the nearest first."""
    kinds = type(error).__mro__
    return [kinds[0].__name__, [kind.__name__ for kind in kinds if kind.__module__ == "builtins"]]


def serve(setup: str, program: str, asked: int, answered: int) -> None:
    """Runs the program as a module of its own, then answers until nobody asks."""
    module = sys.modules["solution"] = type(sys)("solution")
    sys.setrecursionlimit(20_000)
    for source in (setup, program):
        exec(compile(source, "program.py", "exec"), module.__dict__)
    while True:
        try:
            message = receive(asked)
        except EOFError:
            return
        send(answered, answer(module.__dict__, message))
