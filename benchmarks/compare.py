"""Runs two or more sides alternately, each as a program in its own environment, and keeps what they report.

Standard library and psutil only: torch in this process would count as memory of the programs it starts (Linux hands
the peak of a parent on to its children).
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

FOLDER = Path(__file__).resolve().parent
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20)}
"""What LightRFT asks of glibc for itself: keep freed blocks. A peer's fastest setting may have it too."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """A program that does the work and prints one JSON line."""

    name: str
    python: Path
    script: str
    """Path below this folder."""
    arguments: Mapping[str, str | int] = field(default_factory=dict)
    """Option -> value; told apart from what `script` has by default."""
    environment: Mapping[str, str] = field(default_factory=dict)


def our_side(name: str, script: str, arguments: Mapping[str, str | int]) -> Side:
    """A side that runs with this interpreter and finds LightRFT beside this folder, installed or not."""
    paths = [
        str(FOLDER),
        str(FOLDER / "ours"),
        str(FOLDER.parent),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    return Side(name, Path(sys.executable), script, arguments, {"PYTHONPATH": os.pathsep.join(paths)})


def run(side: Side, threads: int) -> Result:
    """What the side reported, with the load of the machine before it and the most memory its processes held together.

    RuntimeError with the end of its output if it fails.
    """
    options = [text for name, value in side.arguments.items() for text in (f"--{name}", str(value))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        **side.environment,
    }
    load, most = os.getloadavg()[0], 0
    with tempfile.TemporaryFile("w+") as written:
        command = [str(side.python), str(FOLDER / side.script), *options]
        process = subprocess.Popen(command, env=environment, stdout=written, stderr=subprocess.STDOUT)
        while process.poll() is None:
            most = max(most, resident(process.pid))
            time.sleep(0.2)
        written.seek(0)
        output = written.read().strip().splitlines()
    if process.returncode or not output or not output[-1].startswith("{"):
        raise RuntimeError(f"{side.name} ended with status {process.returncode}:\n" + "\n".join(output[-30:]))
    result: Result = json.loads(output[-1])
    return {**result, "name": side.name, "load_before": load, "tree_gib": most / 2**30}


def resident(pid: int) -> int:
    """Bytes resident in a process and all its children; pages they share count once for each."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def alternate(sides: Sequence[Side], repetitions: int, threads: int) -> dict[str, list[Result]]:
    """Each side `repetitions` times: A B, then B A, and so on, so that a slow minute of the machine meets both."""
    results: dict[str, list[Result]] = {side.name: [] for side in sides}
    for repetition in range(repetitions):
        for side in sides if repetition % 2 == 0 else sides[::-1]:
            say(f"{side.name}, {repetition + 1} of {repetitions} (load {os.getloadavg()[0]:.1f})")
            results[side.name].append(run(side, threads))
    return results


def median(results: Sequence[Result], *path: str) -> float:
    """Median over repetitions of one reported number, e.g. median(results, "seconds", "step")."""
    return statistics.median(number(result, *path) for result in results)


def number(result: Result, *path: str) -> float:
    """One reported number; NaN where a side does not report it."""
    found: Any = result
    for name in path:
        if name not in found:
            return float("nan")
        found = found[name]
    return float(found)


def peer_environment(name: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made in `folder` (about a minute) if it is not there.

    Installs peers/NAME-requirements.txt and, without what they ask for, peers/NAME-no-deps.txt.
    """
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    if sys.version_info[:2] != (3, 11):
        say(f"note: the peers were tried with Python 3.11, this is {platform.python_version()}")
    say(f"making {folder}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = FOLDER / "peers" / f"{name}-requirements.txt"
    # torch first: some packages look for it when they are built.
    torch = next(
        line for line in requirements.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")
    )
    subprocess.run([*install, torch], check=True)
    subprocess.run([*install, "-r", str(requirements)], check=True)
    bare = FOLDER / "peers" / f"{name}-no-deps.txt"
    if bare.is_file():
        subprocess.run([*install, "--no-deps", "-r", str(bare)], check=True)
    (folder / "complete").touch()
    return python


def model_folder(setting: str) -> str:
    """The Hugging Face folder behind a model.path, as the peers need it; converts a package model once."""
    code = (
        "import sys; from lightrft.config import ModelConfig; from lightrft.models.load import model_folder; "
        "print(model_folder(ModelConfig(path=sys.argv[1])))"
    )
    paths = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-c", code, setting],
        env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return found.stdout.strip().splitlines()[-1]


def machine() -> dict[str, Any]:
    """What the numbers were taken on, with the settings of the environment that change them."""
    settings = {
        k: v
        for k, v in os.environ.items()
        if k.startswith(("OMP_", "KMP_", "MALLOC_", "VLLM_", "LD_PRELOAD"))
    }
    return {
        "processor": processor_name(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "load": os.getloadavg(),
        "system": platform.platform(),
        "environment": settings,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def processor_name() -> str:
    """The model name the kernel gives, else what Python knows."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def write_results(name: str, content: Mapping[str, Any]) -> Path:
    """Writes benchmarks/results/NAME.json and returns its path."""
    path = FOLDER / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n", encoding="utf-8")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        )

    return "\n".join([line(header), *map(line, rows)])


def say(text: str) -> None:
    """A line of progress, on stderr; the table goes to stdout."""
    print(text, file=sys.stderr, flush=True)
