"""A Python interpreter for the policy to call: each call is a program of its own in the sandbox."""

from __future__ import annotations

from lightrft.config.sandbox import SandboxConfig
from lightrft.environments.base import ToolError
from lightrft.sandbox.lifetime import Outcome
from lightrft.workers.boxes import box_of


class Python:
    """Runs a Python program and returns what it prints. Every call begins anew; there are no files and no network."""

    __name__ = "python"

    def __init__(self, sandbox: SandboxConfig) -> None:
        self.sandbox = sandbox

    def __call__(self, code: str) -> str:
        """What the program printed. ToolError with its last line of error where it failed or was ended at a limit."""
        return told(box_of(self.sandbox).run(code))


def told(found: Outcome) -> str:
    """What a program printed. ToolError with its last line of error where it failed or was ended at a limit."""
    if found.status == "ended":
        return found.stdout or "(nothing was printed)"
    why = found.error if found.status == "failed" else ""
    raise ToolError("\n".join(filter(None, (found.stdout, why or found.why))))
