"""The child process in which functions of users run: `python -m lightrft.workers.process FD`, started by pool.py.

It has no standard input and a session of its own, so that Ctrl-C in the terminal reaches only the trainer, which
decides; it ends when its connection closes or its parent is gone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from lightrft.utils.imports import resolve
from lightrft.utils.output import guarded_output

NO_BUILT_INS: Mapping[str, Callable[[str], Callable[[Any], Any]]] = {}


def main(descriptor: int) -> None:
    """Loads the named functions, answers "ready" or "error", then makes call after call until the connection closes."""
    connection = Connection(descriptor)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        loader, names = connection.recv()
        load = resolve(NO_BUILT_INS, loader, "loader")
        functions = {name: load(name) for name in names}
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
    """("done", result), or ("failed", traceback) whatever the function raises."""
    try:
        return "done", function(argument)
    except (Exception, SystemExit):
        return "failed", traceback.format_exc()


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    with guarded_output():  # a function that prints fails by no terminal
        main(int(sys.argv[1]))
