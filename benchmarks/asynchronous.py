"""Sampling beside learning with a real vLLM server: seconds of a step, what overlaps, and what the corrections say, in the plain order and one step off-policy.

    python benchmarks/asynchronous.py                          # makes .env-vllm-server (2 GB) the first time
    python benchmarks/asynchronous.py --python VENV/bin/python   # an environment with vLLM and what `lightrft serve` needs
    python benchmarks/asynchronous.py --steps 8 --runs kept

One server (`lightrft serve`) serves three runs on the task `tiny`, one after the other, of a small Llama with random weights unless --model names one: `plain` without the option, `zero` with
rollout.max_staleness=0, whose weights must be those of `plain`, and `beside` with 1. Server and trainer have one thread each. The
first two steps of each are not counted: the engine warms up, and nothing is sampled beside the first. Prints a table and the timeline of some
steps, and writes results/asynchronous.json. Tokens that were sampled beside a step weigh 1 whatever algorithm.mismatch_correction is, and their old
log-probs are the engine's, so that mismatch/ of `beside` is that of the first step alone, 0 and 1 in the others; the ratio of the loss holds both.

If anything fails, the folder of the runs stays, with server.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compare
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lightrft.runs.live import timeline  # noqa: E402  # found beside this folder
from lightrft.testing import tiny_folder  # noqa: E402

RUNS: dict[str, list[str]] = {
    "plain": [],
    "zero": ["--rollout.max-staleness", "0"],
    "beside": ["--rollout.max-staleness", "1"],
}
SMALL = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32,
}  # fmt: skip
LEARNING = {"score", "sync", "train"}
"""Phases in which the trainer works, and a server could."""
COUNTED = 2
"""Steps that are left out of the medians."""
FEWEST = COUNTED + 2
"""Steps of a run: some to count, and some to draw that have one before and one behind them."""
TOLD = (
    *("seconds/step", "seconds/rollout", "seconds/wait", "seconds/sync", "seconds/score", "seconds/train"),
    *(
        "rollout/staleness",
        "rollout/off_policy_fraction",
        "mismatch/mean_abs",
        "mismatch/max",
        "mismatch/ratio",
    ),
    *("mismatch/effective_samples", "mismatch/beyond_limit", "ratio/mean", "clip/fraction", "reward/mean"),
)
"""Metrics of the table, as docs/metrics.md explains them."""
WIDTH = 72
"""Columns of the timeline."""
Row = Mapping[str, Any]


def main() -> None:
    """Starts a server, makes the runs, tells what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python", type=Path, help="interpreter of the server; left out: that of .env-vllm-server"
    )
    parser.add_argument("--model", help="as model.path; left out: a small Llama with random weights")
    parser.add_argument("--steps", type=enough, default=12, help=f"at least {FEWEST}")
    parser.add_argument("--prompts", type=int, default=8, help="of a step, eight responses each")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--runs", type=Path, help="folder for run folders; left out: a temporary one")
    options = parser.parse_args()
    folder = options.runs or Path(tempfile.mkdtemp(prefix="asynchronous"))
    folder.mkdir(parents=True, exist_ok=True)
    python = options.python or environment(Path(".env-vllm-server"))
    small = None if options.model else tiny_folder(folder / "small", "llama", **SMALL)
    model = str(small) if small else compare.model_folder(options.model)
    flags = [
        *("train", "tiny", "dr_grpo", "vllm_server", "--model.path", model),
        *("--steps", str(options.steps), "--rollout.prompts-per-step", str(options.prompts)),
        *("--rollout.group-size", "8", "--rollout.max-tokens", str(options.max_tokens)),
        *("--evaluate.before-and-after", "false", "--checkpoint.every-steps", "0", "--rewards.workers", "0"),
        *("--log.progress", "false", "--log.tensorboard", "false", "--log.trajectories-every-steps", "0"),
    ]
    try:
        with serving(python, model, folder / "server.txt") as server:
            for name, more in RUNS.items():
                compare.say(f"{name} (load {os.getloadavg()[0]:.1f})")
                train(
                    [*flags, "--rollout.server.urls", server.url, *more, "--run", str(folder / name)], server
                )
        tell(folder, options.steps)
    except BaseException:
        compare.say(f"what was written is in {folder}")
        raise
    if options.runs is None:
        shutil.rmtree(folder)


def enough(text: str) -> int:
    """A number of steps of which some are counted and some drawn."""
    steps = int(text)
    if steps < FEWEST:
        raise argparse.ArgumentTypeError(
            f"{steps}: the first {COUNTED} are not counted; give {FEWEST} or more"
        )
    return steps


def environment(folder: Path) -> Path:
    """The interpreter of an environment with vLLM and what its server and LightRFT need, made if it is not there."""
    python = compare.peer_environment("vllm", folder)
    if not (folder / "serves").is_file():
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        server = compare.FOLDER / "peers" / "engines-no-deps.txt"
        subprocess.run([*install, "--no-deps", "-r", str(server)], check=True)
        subprocess.run(
            [*install, "accelerate", "datasets", "math-verify", "peft", "tyro", "rich", "psutil"], check=True
        )
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.run(
            [str(python), "-c", where], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        (Path(site) / "torchvision" / "_meta_registrations.py").write_text("")  # see engines-no-deps.txt
        (folder / "serves").touch()
    return python


@dataclass(frozen=True)
class Server:
    """A server that was started, with all that it starts in a process group of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    """What it says."""

    @property
    def url(self) -> str:
        """Where it answers, once it does."""
        return f"http://127.0.0.1:{self.port}"

    def check(self) -> None:
        """RuntimeError with the end of what it said if it has ended."""
        if self.process.poll() is not None:
            said = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"the server ended with status {self.process.returncode}:\n{said}")

    def end(self) -> None:
        """Ends it and what it started, whatever is left of them."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextmanager
def serving(python: Path, model: str, log: Path) -> Iterator[Server]:
    """A server for that model, ended with the block; its trainer waits until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(python), "-m", "lightrft", "serve", "vllm_server", "--model.path", model, "--port", str(port)),
        *("--rollout.vllm.enforce-eager", "true", "--rollout.vllm.max-model-len", "256"),
    ]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, env=surroundings(), stdout=output, stderr=output, start_new_session=True
        )
    server = Server(process, port, log)
    try:
        yield server
    finally:
        server.end()


def surroundings() -> dict[str, str]:
    """One thread, and LightRFT from beside this folder."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def train(arguments: Sequence[str], server: Server) -> None:
    """A run to its end. RuntimeError with the end of what it said if it fails, or of what its server said if that ends before."""
    command = [sys.executable, "-m", "lightrft", *arguments, "--rollout.server.wait-seconds", "1800"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, env=surroundings(), stdout=said, stderr=said)
        try:
            while process.poll() is None:
                server.check()
                time.sleep(0.2)
        finally:
            process.kill()  # nothing to one that has ended
            process.wait()
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{said.read().decode(errors='replace')[-4000:]}")


def tell(folder: Path, steps: int) -> None:
    """Prints the medians of each run, how far the weights are apart, and the timeline; writes them to results."""
    found = {name: medians(folder / name) for name in RUNS}
    apart = {name: distance(folder / "plain", folder / name) for name in RUNS if name != "plain"}
    rows = timeline(folder / "beside", steps)
    shares = [overlapped(rows, row) for row in rows if row.get("beside")]
    result = {"medians": found, "apart": apart, "overlapped": shares, "timeline": rows}
    print(compare.write_results("asynchronous", result))
    table = [[name, *(f"{found[run].get(name, float('nan')):.4g}" for run in RUNS)] for name in TOLD]
    print(compare.table([f"median of steps {COUNTED + 1} to {steps}", *RUNS], table))
    print("mismatch/ of beside: 0 and 1 by definition, as no correction weighs tokens of older weights")
    for name, most in apart.items():
        print(f"largest difference of a weight at the end, {name} and plain: {most:.3g}")
    print(
        f"of each rollout beside a step, the share while the trainer worked: {', '.join(f'{s:.0%}' for s in shares)}"
    )
    print(drawn(rows, range(2, min(steps, 6))))


def medians(run: Path) -> dict[str, float]:
    """Metric -> its median over the steps that count."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if "seconds/step" in row and row["step"] > COUNTED]
    known = [name for name in TOLD if any(name in row for row in steps)]
    return {name: statistics.median(row.get(name, 0.0) for row in steps) for name in known}


def distance(one: Path, other: Path) -> float:
    """The largest difference of any weight of the models that two runs ended with."""
    mine, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    return max(float((mine[name].float() - theirs[name].float()).abs().max()) for name in mine)


def overlapped(rows: Sequence[Row], flight: Row) -> float:
    """The share of a rollout beside a step during which the trainer scored, gave weights or learned."""
    start, end = flight["start"], flight["start"] + flight["seconds"]
    working = [r for r in rows if r["phase"] in LEARNING and not r.get("beside")]
    shared = sum(max(0.0, min(end, r["start"] + r["seconds"]) - max(start, r["start"])) for r in working)
    return float(shared / flight["seconds"])


def drawn(rows: Sequence[Row], steps: Sequence[int]) -> str:
    """The phases of these steps as two lanes of text, from left to right: what the trainer does, and which step's responses the server samples."""
    shown = [row for row in rows if row["step"] in steps or (row.get("beside") and row["step"] - 1 in steps)]
    start = min(row["start"] for row in shown)
    seconds = max(row["start"] + row["seconds"] for row in shown) - start
    lanes = {"trainer": [" "] * WIDTH, "server": [" "] * WIDTH}
    for row in shown:
        first, last = (
            round((at - start) / seconds * WIDTH) for at in (row["start"], row["start"] + row["seconds"])
        )
        mark = str(row["step"])[-1] if row["phase"] == "rollout" else row["phase"][0]
        lane = lanes["server" if row["phase"] == "rollout" else "trainer"]
        lane[first:last] = mark * (min(last, WIDTH) - first)
    said = f"{seconds:.0f} s, steps {steps[0]} to {steps[-1]}. trainer: t train, s score or sync, w wait; server: the step whose responses it samples"
    return "\n".join([*(f"{name:8}|{''.join(lane)}|" for name, lane in lanes.items()), said])


if __name__ == "__main__":
    main()
