"""All that is worth knowing of a machine with a GPU, by one command, in at most 8 minutes: writes one JSON file.

    python benchmarks/gpu.py                                      # all parts, results in benchmarks/results/gpu.json
    python benchmarks/gpu.py --parts engine step --shapes 1.5b --out found.json
    python benchmarks/gpu.py --parts trl --shapes 1.5b --minutes 40   # TRL's step at its own pace

Parts: tests (pytest tests/accelerator), peak (what the device can do at best), head, layers (plain, compiled, fused),
engine (beside transformers' `generate`), step (one GRPO step by phase), offload (host memory to device and back), trl (the same step by TRL, where it is installed), nccl (two
devices). Each part and shape is a process of its own, with random weights from a config; one that fails or finds no time is told so
in the results, and the others go on. On a machine without a GPU it runs on the CPU, for which --shapes tiny is meant.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("peak", "tests", "head", "layers", "engine", "step", "offload", "trl", "nccl")
BY_SHAPE = ("head", "layers", "engine", "step", "offload", "trl")
"""Parts that are measured for each shape."""
FUSED = ("plain", "compiled", "liger")
"""What the decoder layers of a step are: as they are, model.compile, model.kernels=liger."""
SHAPES = ("0.5b", "1.5b", "8b")
MINUTES = 8.0
MOST_SECONDS = {"tests": 150.0, "engine": 90.0, "layers": 120.0, "step": 120.0, "trl": 120.0}
"""Part -> longest that one process of it may take; 60 for the others. Twice as long where --minutes is twice MINUTES, and so on."""


def main() -> None:
    """Runs what is asked for, part after part, and writes after each."""
    given = parsed()
    out, deadline = Path(given.out), time.monotonic() + 60 * given.minutes
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": machine(), "work": work_of(given), "parts": {}}
    for part in given.parts:
        for shape in given.shapes if part in BY_SHAPE else [""]:
            name = f"{part} {shape}".strip()
            found["parts"][name] = in_a_process(part, shape, given, deadline - time.monotonic())
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(f"{name}: {json.dumps(found['parts'][name])}", flush=True)
    print(f"written to {out}")


def parsed() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shapes", nargs="+", choices=(*SHAPES, "tiny"), default=list(SHAPES))
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="after which nothing more is begun or goes on"
    )
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--answers", type=int, default=8, help="of each question")
    parser.add_argument("--tokens", type=int, default=512, help="of an answer")
    parser.add_argument("--length", type=int, default=256, help="tokens of a question")
    parser.add_argument("--batch", type=int, default=16384, help="update.tokens_per_micro_batch")
    parser.add_argument(
        "--decode",
        type=int,
        default=128,
        help="tokens of an answer where engines are compared, of 64 at a time",
    )
    parser.add_argument(
        "--record", action=argparse.BooleanOptionalAction, default=True, help="rollout.native.cuda_graphs"
    )
    parser.add_argument("--fused", choices=FUSED, default="plain", help="layers of the step")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "gpu.json"))
    parser.add_argument("--child", nargs=2, metavar=("PART", "SHAPE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def work_of(given: argparse.Namespace) -> dict[str, Any]:
    """The sizes that the results belong to."""
    return {
        name: getattr(given, name)
        for name in ("questions", "answers", "tokens", "length", "batch", "decode", "record", "fused")
    }


def machine() -> dict[str, Any]:
    """When, and with what; each part says on which device."""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def in_a_process(part: str, shape: str, given: argparse.Namespace, left: float) -> dict[str, Any]:
    """What a part found: its numbers, or `failed` or `skipped` with the reason."""
    if left < 5:
        return {"skipped": f"no time is left of --minutes={given.minutes:g}"}
    limit = min(left, MOST_SECONDS.get(part, 60.0) * max(1.0, given.minutes / MINUTES))
    if part == "tests":
        command = [sys.executable, "-m", "pytest", "-q", "tests/accelerator"]
    else:
        sizes = [
            x for name, value in work_of(given).items() if name != "record" for x in (f"--{name}", str(value))
        ]
        own = [
            __file__,
            "--child",
            part,
            shape or "none",
            *sizes,
            "--record" if given.record else "--no-record",
        ]
        command = [sys.executable, *own]
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return {"failed": f"took more than {limit:.0f} s", "said": said[-1000:]}
    seconds = round(time.monotonic() - start, 1)
    if part == "tests":
        return {"passed": process.returncode == 0, "said": said.splitlines()[-12:], "took": seconds}
    if process.returncode:
        return {"failed": f"exit status {process.returncode}", "said": said[-2000:], "took": seconds}
    return {**json.loads(said.splitlines()[-1]), "took": seconds}


if __name__ == "__main__":
    options = parsed()
    if options.child:
        sys.path.insert(0, str(ROOT))
        sys.path.insert(0, str(ROOT / "benchmarks"))
        import gpu_parts

        part, shape = options.child
        print(json.dumps(gpu_parts.measured(part, shape, options)))
    else:
        main()
