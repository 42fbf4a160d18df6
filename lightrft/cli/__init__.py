"""The command line: `main` finds the command, calls it, and turns what it raises into a sentence and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from lightrft import __version__
from lightrft.cli.commands import COMMANDS, Command
from lightrft.cli.help import help_text
from lightrft.utils.failures import is_explained, leave_verdict
from lightrft.utils.interrupt import Stopped
from lightrft.utils.output import guarded_output

WRITES_FILES = (
    "train",
    "sft",
    "reward",
    "dpo",
    "evaluate",
    "judge",
    "export",
    "serve",
    "serve-rewards",
    "init",
)
"""Commands that have done their work even where nothing of it could be printed."""

__all__ = ["COMMANDS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status: 0 success, 2 a mistake or a failure that is explained; 130 (Ctrl-C),
    143 (SIGTERM) or 129 (a closed terminal) if asked to stop, after saving."""
    # Threads that wait by spinning slow a run down several times as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    args = list(sys.argv[1:] if argv is None else argv)
    with guarded_output() as (out, _):
        status = _called(args)
        out.flush()
        if out.is_cut and status == 0 and args[:1] and args[0] not in WRITES_FILES:
            return fail(f"the output could not be written: {out.lost}")
        return status


def _called(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if args[0] == "--version":
        print(f"lightrft {__version__}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        perhaps = f" Perhaps you meant: {close[0]}." if close else ""
        return fail(f"no command '{name}'.{perhaps} There are: {', '.join(COMMANDS)}.")
    return _ended(COMMANDS[name], rest)


def _ended(command: Command, rest: list[str]) -> int:
    """The exit status of a command, however it ends."""
    try:
        return command(rest)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Stopped as stopped:
        # Our launcher reads how we ended; a status other than 0 would be a failure to it.
        return 0 if leave_verdict({"stopped": str(stopped)}) else stopped.exit_status
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, FloatingPointError, OSError) as error:
        if not is_explained(error):
            raise
        return fail(str(error))


def fail(message: str) -> int:
    """Prints a message and returns the exit status of a mistake."""
    print(f"lightrft: {message}", file=sys.stderr)
    return 2
