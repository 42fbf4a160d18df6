"""A made run of many gigabytes, opened as `lightrft view` opens it: seconds, memory, and what is read of it.

    python benchmarks/large_run.py --gb 10 --folder /tmp      # needs so much disk, which is free again at the end

Some steps of 256 responses of 1,000 tokens, with all columns of a GRPO step and numbers that do not compress, are written as a run writes
them and copied until the run has its size. Then, each in a process of its own: the run is opened and all that the first page of the viewer asks is answered; one response is
read with the columns of its tokens. Read are the bytes that the process has asked the system for (/proc/self/io), its imports left out.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

MADE = 4
"""Steps that are made; the others are copies."""
GROUPS, SIBLINGS, TOKENS = 32, 8, 1000
COLUMNS = ("old", "ref", "entropy")


def step(folder: Path, number: int) -> None:
    import torch

    from lightrft.runs import trajectories
    from lightrft.types import Prompt, Trajectory

    draw = torch.Generator().manual_seed(number)
    words = ["sum", "then", "minus", "result", "check", "carry", "seven", "twelve", "so", "the"]
    found = []
    for group in range(GROUPS):
        prompt = Prompt(
            f"file/rows.jsonl:{group}",
            [1] * 200,
            [{"role": "user", "content": "What is 12 + 30? " * 10}],
            "42",
            "file",
        )
        for _ in range(SIBLINGS):
            ids = torch.randint(0, 100_000, (TOKENS,), generator=draw)
            sampled = -torch.rand(TOKENS, generator=draw)
            text = " ".join(words[n % 10] for n in ids.tolist())
            t = Trajectory(
                prompt, group, ids.tolist(), [True] * TOKENS, sampled.tolist(), "stop", answer=text
            )
            t.use, t.reward, t.parts = (
                "trained",
                float(random.Random(int(ids[0])).random() < 0.5),
                {"math": 1.0},
            )
            t.columns = {name: torch.rand(TOKENS, generator=draw) for name in COLUMNS}
            t.columns["advantages"] = torch.full((TOKENS,), float(ids[1] % 7) - 3)
            t.learned = {"new": torch.rand(TOKENS, generator=draw), "weight": torch.full((TOKENS,), 1e-3)}
            found.append(t)
    trajectories.save(folder, number, found, pieces=lambda ids: [f" {words[n % 10]}" for n in ids])


def make(folder: Path, size: float) -> int:
    """A run of so many bytes; its steps."""
    from lightrft.runs.layout import RunFolder
    from lightrft.runs.metrics import Logger

    files = RunFolder(folder)
    for number in range(1, MADE + 1):
        step(folder, number)
    made = [files.responses(number, 0) for number in range(1, MADE + 1)]
    steps = max(MADE, round(size * MADE / sum(file.stat().st_size for file in made)))
    for number in range(MADE + 1, steps + 1):
        shutil.copyfile(made[number % MADE], files.responses(number, 0))
    with Logger(folder, tensorboard=False) as logger:
        for number in range(1, steps + 1):
            names = ("reward/mean", "entropy", "kl", "loss", "grad_norm", "length/mean", "seconds/step")
            logger.log(number, {name: random.Random(f"{name}{number}").random() for name in names})
    files.write_format()
    files.config.write_text(f"steps: {steps}\n")
    files.write_summary({"steps": steps})
    return steps


WORK = {
    "opens, and answers the first page": "answers.answer([Run(folder)], '0/overview'); answers.answer([Run(folder)], '0/pulse')",
    "reads one response with its tokens": "Run(folder).tokens(step, 100)",
    "answers the groups of a step": "answers.answer([Run(folder)], f'0/groups/{step}')",
}


def measured(work: str, folder: Path, steps: int) -> dict[str, float]:
    program = f"""
import json, sys, time
from pathlib import Path
from lightrft.console.web import answers
from lightrft.runs.reader import Run
folder, step = Path(sys.argv[1]), int(sys.argv[2])
def peak():  # of this program alone: getrusage counts what the process held that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
def read(): return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
begun, worked, before = time.monotonic(), time.process_time(), read()
{work}
print(json.dumps([time.monotonic() - begun, time.process_time() - worked, time.process_time(), (read() - before) / 1e6, peak()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(steps // 2)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = ("seconds", "cpu", "whole", "read", "peak")
    return dict(zip(names, json.loads(done.stdout.splitlines()[-1]), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=10.0, help="size of the run in 10^9 bytes")
    parser.add_argument("--folder", type=Path, default=None, help="where it is made; a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place) / "run"
        folder.mkdir()
        begun = time.monotonic()
        steps = make(folder, given.gb * 1e9)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        tokens = steps * GROUPS * SIBLINGS * TOKENS
        print(
            f"{size / 1e9:.2f} GB: {steps} steps, {tokens / 1e6:.0f} million tokens, {size / tokens:.1f} bytes a token; made in {time.monotonic() - begun:.0f} s"
        )
        table(folder, steps)


def table(folder: Path, steps: int) -> None:
    print(f"{'':36} {'seconds':>8} {'CPU':>6} {'CPU with imports':>17} {'MB read':>8} {'MB peak':>8}")
    for name, work in WORK.items():
        found = measured(work, folder, steps)
        numbers = f"{found['seconds']:8.2f} {found['cpu']:6.2f} {found['whole']:17.2f}"
        print(f"{name:36} {numbers} {found['read']:8.1f} {found['peak']:8.0f}", flush=True)


if __name__ == "__main__":
    main()
