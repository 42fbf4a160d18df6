"""The child process in which rewards run: `python -m lightrft.workers.process FD`, started by pool.py.

It has no standard input and a session of its own, so that Ctrl-C in the terminal reaches only the trainer, which
decides; it ends when its connection closes or its parent is gone.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from lightrft.rewards.function import values_of
from lightrft.rewards.table import load_reward


def main(descriptor: int) -> None:
    """Loads the named rewards, answers "ready" or "error", then judges batch after batch until the connection closes."""
    connection = Connection(descriptor)
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        functions = {name: load_reward(name) for name in connection.recv()}
    except Exception as error:
        plain = isinstance(error, ValueError | RuntimeError)
        connection.send(("error", str(error) if plain else traceback.format_exc()))
        return
    try:
        connection.send(("ready", None))
        while True:
            name, trajectories = connection.recv()
            connection.send(attempt(functions[name], trajectories))
    except (EOFError, ConnectionError):  # the parent has closed it, perhaps without reading what was sent
        return


def attempt(function: Any, trajectories: Any) -> tuple[str, Any]:
    """("values", numbers), or ("failed", traceback) whatever the reward raises."""
    try:
        return "values", values_of(function, trajectories)
    except (Exception, SystemExit):
        return "failed", traceback.format_exc()


def _leave_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
