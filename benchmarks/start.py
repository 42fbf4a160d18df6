"""From the command to the end of the first step, with a million prompts: what the data costs.

    python benchmarks/start.py                    # a million rows as JSON lines, then as Parquet
    python benchmarks/start.py --rows 100000 --forms parquet

Rows have questions of about the length of GSM8K's, an answer, and a number as reference. `lightrft train tiny grpo` takes one step with
them and is compared with the same command over 100 of the rows: the difference is what the data costs, in seconds and in CPU seconds of the
process and its children. Printed is also the most memory that the process held. Nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FEW = 100
WORDS = [
    "each",
    "day",
    "bakes",
    "apples",
    "sells",
    "them",
    "market",
    "price",
    "dollars",
    "how",
    "many",
    "left",
    "friend",
    "gave",
    "twice",
    "week",
    "total",
    "boxes",
    "costs",
    "more",
    "than",
    "half",
]


def rows(count: int) -> Iterator[dict[str, Any]]:
    draw = random.Random(0)
    for n in range(count):
        asked = " ".join(draw.choices(WORDS, k=42))
        told = " ".join(draw.choices(WORDS, k=50))
        yield {"question": f"{n}: {asked}?", "solution": told, "answer": str(draw.randrange(1000))}


def write(folder: Path, form: str, count: int) -> Path:
    file = folder / f"rows-{count}.{form}"
    if form == "jsonl":
        with file.open("w") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows(count))
        return file
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(list(rows(count))), file)
    return file


def seconds(file: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and GiB of a run of one step."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    words = ["tiny", "grpo", "--steps", "1", "--run", str(folder / "run"), "--tasks.train", "file", "1"]
    words += [
        "--tasks.train-file",
        str(file),
        "--tasks.prompt-field",
        "question",
        "--tasks.target-field",
        "answer",
    ]
    words += ["--rewards.functions", "number", "1", "--evaluate.before-and-after", "false"]
    words += ["--log.progress", "false", "--log.curves", "false", "--rewards.workers", "0"]
    script = (
        "import resource, sys; from lightrft.cli import main; code = main(sys.argv[1:]);"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "train", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    taken, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = float(done.stdout.split("peak ")[-1].split()[0])
    subprocess.run(["rm", "-r", str(folder / "run")], check=True)
    return taken, cpu, peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--forms", nargs="+", choices=["jsonl", "parquet"], default=["jsonl", "parquet"])
    given = parser.parse_args()
    print(f"{'rows':>10} {'form':>8} {'seconds':>8} {'CPU':>8} {'GiB':>6}   of the data: seconds, CPU")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for form in given.forms:
            least = seconds(write(folder, form, FEW), folder)
            print(f"{FEW:10} {form:>8} {least[0]:8.1f} {least[1]:8.1f} {least[2]:6.2f}", flush=True)
            file = write(folder, form, given.rows)
            taken, cpu, peak = seconds(file, folder)
            line = f"{given.rows:10} {form:>8} {taken:8.1f} {cpu:8.1f} {peak:6.2f}"
            print(f"{line}   {taken - least[0]:.1f}, {cpu - least[1]:.1f}", flush=True)
            file.unlink()


if __name__ == "__main__":
    main()
