"""Imports and tries everything once, then forks for each command line it is sent: runs in processes of their own, warm.

Reads a JSON object per line and answers with one: {"args", "cwd", "output", "env"} -> {"pid"}; {"wait": pid} -> {"status"},
negative for the signal that ended the process. With one thread and on the CPU nothing is lost in a fork.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import sys
import tempfile
import traceback

from lightrft.cli import main

FIRST = ["train", "tiny", "lora", "--steps", "1", "--rewards.workers", "0", "--log.tensorboard=false"]


def run(args: list[str], cwd: str, output: str, env: dict[str, str]) -> int:
    """What a process of its own does with a command line; returns its exit status."""
    os.chdir(cwd)
    os.environ.update(env)
    silence, sink = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for place, descriptor in enumerate((silence, sink, sink)):
        os.dup2(descriptor, place)
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
    import torch.utils.tensorboard  # noqa: F401  (imported by a run only where it is used)

    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        main([*FIRST, "--run", f"{scratch}/run"])
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
