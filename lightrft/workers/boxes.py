"""The box that settings ask for, in whichever process runs programs of the policy."""

from __future__ import annotations

import logging
import math
from functools import cache

from lightrft.config.sandbox import SandboxConfig
from lightrft.sandbox.box import Box
from lightrft.sandbox.levels import make_box
from lightrft.sandbox.lifetime import Limits, SandboxError

MARGIN_SECONDS = 2.0
"""What who runs programs needs of its time limit besides them."""
USUAL = SandboxConfig()
"""The sandbox where no settings are given."""

log = logging.getLogger("lightrft")


@cache
def box_of(sandbox: SandboxConfig) -> Box:
    """The box that these settings ask for. SandboxError if this machine has none."""
    limits = Limits(
        cpu_seconds=sandbox.cpu_seconds,
        wall_seconds=sandbox.wall_seconds,
        memory_mib=sandbox.memory_mib,
        output_kib=sandbox.output_kib,
        disk_mib=sandbox.disk_mib,
        processes=sandbox.processes,
        machine_processes=sandbox.machine_processes if sandbox.processes else 0,
    )
    return make_box(limits, sandbox.kind, sandbox.python)


def check_box(sandbox: SandboxConfig, option: str, seconds: float, *, before: float = 0.0) -> None:
    """ValueError where programs cannot be run with these settings; warns where nothing protects from them.

    `option`: the setting that limits the time of who runs them, to `seconds` (0: no limit), in which `before` seconds may pass until a
    program begins that takes all of sandbox.wall_seconds. One that starts processes may wait as long for its place.
    """
    if sandbox.processes:
        before += sandbox.wall_seconds
    least = before + sandbox.wall_seconds + MARGIN_SECONDS
    if seconds and seconds < least:
        begins = f", and may begin after {before:g} seconds" if before else ""
        raise ValueError(
            f"{option}={seconds:g} is too short for programs that may take sandbox.wall_seconds={sandbox.wall_seconds:g}{begins}: they would "
            f"count as failures of ours. Set {option} to at least {math.ceil(least)}, or make the other smaller."
        )
    try:
        box_of(sandbox)
    except SandboxError as error:
        raise ValueError(str(error)) from None
    if sandbox.kind == "none":
        log.warning(
            "sandbox.kind=none: programs that the policy writes run without a sandbox, with all that you may do yourself"
        )
