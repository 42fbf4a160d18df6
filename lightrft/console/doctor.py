"""`lightrft doctor`: what this machine has, and what is missing for which feature."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightrft.sandbox.levels import LEVELS, levels
from lightrft.utils.extras import extras, install_command, installed

CORE = [
    "torch",
    "transformers",
    "peft",
    "datasets",
    "math-verify",
    "tyro",
    "rich",
    "tensorboard",
]


def report(version: str) -> None:
    """Prints versions, devices, cores, memory and missing extras."""
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]lightrft[/]", version)
    table.add_row("python", f"{platform.python_version()}  {sys.executable}")
    table.add_row("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    for name, value in [*machine().items(), *devices().items()]:
        table.add_row(name, value)
    table.add_row("sandbox", Text(sandbox()))
    for package in CORE:
        table.add_row(package, installed(package) or f"[red]missing[/]: pip install {package}")
    for extra, requirements in extras().items():
        packages = [requirement.name for requirement in requirements]
        missing = [package for package in packages if not installed(package)]
        found = ", ".join(f"{package} {installed(package)}" for package in packages if package not in missing)
        cure = f"[yellow]missing {', '.join(missing)}[/]: {install_command(extra)}" if missing else ""
        table.add_row(f"extra {extra}", "  ".join(part for part in (found, cure) if part))
    Console(highlight=False).print(table)


def sandbox() -> str:
    """The sandbox that programs of the policy would run in here, and why not a better one."""
    found = levels()
    best = next((LEVELS[kind] for kind, why in found.items() if not why), "")
    lacking = "; ".join(f"no {LEVELS[kind]}: {why}" for kind, why in found.items() if why)
    return " ".join(
        filter(None, (best or "none, tasks with programs are refused", lacking and f"({lacking})"))
    )


def machine() -> dict[str, str]:
    """Cores, memory, free disk space and thread settings of the host."""
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(".")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": f"{usable} usable of {os.cpu_count()}",
        "memory": f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}",
        "disk": f"{disk.free / 2**30:.1f} GiB free here",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
    }


def devices() -> dict[str, str]:
    """What torch can compute on, with memory, and the thread count it would use."""
    if not installed("torch"):
        return {"devices": "torch is not installed"}
    import torch

    from lightrft.utils.device import accelerators

    found = {"torch threads": str(torch.get_num_threads())} | accelerators()
    return found if len(found) > 1 else found | {"devices": "cpu only"}
