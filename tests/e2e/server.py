"""Imports everything once and forks for each command line it is sent, so that a run in a process of its own costs no imports.

Reads a JSON object per line and answers with one: {"args", "cwd", "output"} -> {"pid"}; {"wait": pid} -> {"status"},
negative for the signal that ended the process. Nothing is computed here, so no thread of torch is lost in a fork.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import sys
import traceback

MODULES = [
    "lightrft.app",
    "lightrft.cli",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "peft",
    "torch.utils.tensorboard",
    "transformers.models.llama.modeling_llama",
]


def run(args: list[str], cwd: str, output: str) -> int:
    """What a process of its own does with a command line; returns its exit status."""
    os.chdir(cwd)
    silence, sink = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for place, descriptor in enumerate((silence, sink, sink)):
        os.dup2(descriptor, place)
    from lightrft.cli import main

    try:
        status = main(args)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def serve() -> None:
    """Answers until its input closes."""
    for name in MODULES:
        importlib.import_module(name)
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            _, ended = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(ended)}
        else:
            pid = os.fork()
            if not pid:
                os._exit(run(**request))
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
