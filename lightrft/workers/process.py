"""The child process in which functions of users run: `python -m lightrft.workers.process FD PARENT BYTES`, started by pool.py.

It has no standard input and a session of its own, so that Ctrl-C in the terminal reaches only the trainer, which
decides; it ends when its connection closes or its parent is gone, whatever it is stuck in.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from lightrft.utils import inline
from lightrft.utils.failures import without_message
from lightrft.utils.imports import resolve
from lightrft.utils.output import guarded_output
from lightrft.utils.parent import end_with_parent

NO_BUILT_INS: Mapping[str, Callable[..., Callable[[Any], Any]]] = {}


def main(descriptor: int, parent: int, most_bytes: int) -> None:
    """Loads the named functions, answers "ready" or "error", then makes call after call until the connection closes.

    parent: who started this process; without it the process ends.      most_bytes: memory it may have; 0: any.
    """
    end_with_parent(parent)
    limit_memory(most_bytes)
    connection = Connection(descriptor)
    try:
        loader, names, settings, given = connection.recv()
        inline.unpack(given)
        load = resolve(NO_BUILT_INS, loader, "loader")
        further = () if settings is None else (settings,)
        functions = {name: load(name, *further) for name in names}
    except Exception as error:
        plain = isinstance(error, ValueError | RuntimeError)
        connection.send(("error", str(error) if plain else traceback.format_exc()))
        return
    try:
        connection.send(("ready", None))
        while True:
            name, argument = connection.recv()
            connection.send(attempt(functions[name], argument))
    except (EOFError, ConnectionError):  # the parent has closed it, perhaps without reading what was sent
        return


def attempt(function: Callable[[Any], Any], argument: Any) -> tuple[str, Any]:
    """("done", result); ("failed", (traceback, the same without its message)) whatever the function raises; "starved" instead where memory
    was out."""
    try:
        return "done", function(argument)
    except MemoryError as error:
        return "starved", (traceback.format_exc(), without_message(error))
    except (Exception, SystemExit) as error:
        return "failed", (traceback.format_exc(), without_message(error))


def limit_memory(most_bytes: int) -> None:
    """What this process asks for beyond so many bytes is refused (MemoryError), so that others keep theirs; 0: nothing is.

    Address space that is only reserved, as libraries for accelerators do, does not count. Without effect on systems that have
    no such limit.
    """
    if not most_bytes:
        return
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    with guarded_output():  # a function that prints fails by no terminal
        main(*map(int, sys.argv[1:]))
