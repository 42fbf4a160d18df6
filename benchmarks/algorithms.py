"""Learning curves of every algorithm on one tiny task: mean and spread over seeds, in one picture.

    python benchmarks/algorithms.py
    python benchmarks/algorithms.py --seeds 1 --steps 20 --picture ""

Each shipped layer that says how a language model learns trains the random model of `lightrft train tiny` for some steps with the same
answers per step and the same learning rate, so this shows that and how each learns, not which is best: nothing is tuned, and the task is
a toy. Layers without an advantage of their own stand on `grpo`. Writes results/algorithms.json and docs/algorithms.png.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import compare
import yaml

from lightrft.config import layers
from lightrft.utils.imports import require

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "algorithms.png"
GROUPS = ["--rollout.prompts-per-step", "8", "--rollout.group-size", "8"]
SINGLE = ["--rollout.prompts-per-step", "64", "--rollout.group-size", "1"]
LEARNING = {"algorithm", "constraint", "critic", "rewards", "rollout", "update"}
"""Sections of a layer that is an algorithm, or adds to one, and no more."""
LEFT_OUT: dict[str, str] = {
    "ttrl": "no two answers to this task say the same, so there is nothing to vote about",
    "mt_grpo": "it compares turns, and this task has one",
}
"""Layers of that kind that do not run here, and why."""
NEEDED: dict[str, list[str]] = {
    "gspo": ["--algorithm.clip", "0.003", "0.004"],
    "luspo": ["--algorithm.clip", "0.003", "0.004"],
    "gmpo": ["--update.num-minibatches", "2"],
    "cispo": ["--update.num-minibatches", "2"],
    "sapo": ["--update.num-minibatches", "2"],
    "cpgd": ["--update.num-minibatches", "2"],
    "opsm": ["--update.num-minibatches", "2"],
    "remax": ["--algorithm.whiten", "true", "--algorithm.kl-coefficient", "0"],
    "ppo": ["--critic.optimizer.learning-rate", "3e-3"],
    "fire": ["--rollout.first-token-temperature", "2", "--rollout.first-token-top-k", "0"],
    "entropy_tokens": ["--algorithm.high-entropy-fraction", "0.5"],
    "lagrangian": ["--constraint.limit", "0.004", "--constraint.learning-rate", "500"],
}
"""Layer -> bounds and rates that suit so small a model. `distil` learns from a model that `grpo` trained."""


def rows() -> dict[str, list[str]]:
    """Layers of a run -> its flags, 64 answers per step for all: what is shipped, the rows of docs/algorithms.md among it."""
    found = {}
    for name, file in layers.shipped().items():
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        rollout = tree.get("rollout", {})
        if not tree.keys() <= LEARNING or "engine" in rollout or name in LEFT_OUT:
            continue
        alone = "advantage" in tree.get("algorithm", {})
        size = SINGLE if rollout.get("group_size") == 1 else GROUPS
        found[name if alone else f"grpo {name}"] = [*size, *NEEDED.get(name, [])]
    return found


ROWS = rows()


def main() -> None:
    """Trains every row with every seed, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", default="3e-3")
    parser.add_argument("--picture", default=str(PICTURE), help="where to draw; empty: nowhere")
    options = parser.parse_args()
    curves: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        common = [
            *("--steps", str(options.steps), "--optimizer.learning-rate", options.learning_rate),
            *(
                "--update.tokens-per-micro-batch",
                "2048",
                "--checkpoint.every-steps",
                "0",
                "--rewards.workers",
                "0",
            ),
            *("--log.progress", "false", "--log.tensorboard", "false", "--log.trajectories-every-steps", "0"),
            *("--evaluate.before-and-after", "false"),
        ]
        teacher = Path(folder) / "teacher"
        if "distil" in options.rows:
            rewards("grpo", [*ROWS["grpo"], *common, "--run", str(teacher)])
        for row in options.rows:
            flags = [*ROWS[row], *common]
            flags += ["--teacher.path", str(teacher / "model")] if row == "distil" else []
            runs = [Path(folder) / row.replace(" ", "-") / str(seed) for seed in range(options.seeds)]
            curves[row] = [
                rewards(row, [*flags, "--seed", str(seed), "--run", str(run)])
                for seed, run in enumerate(runs)
            ]
            starts, ends = (
                [statistics.mean(part) for part in parts]
                for parts in zip(*((c[:5], c[-5:]) for c in curves[row]), strict=True)
            )
            compare.say(
                f"{row}: reward of the first five steps {statistics.mean(starts):.2f}, of the last five {min(ends):.2f} - {max(ends):.2f}"
            )
            compare.write_results("algorithms", {"steps": options.steps, "curves": curves})
    if options.picture:
        draw(curves, Path(options.picture))
        print(f"picture: {options.picture}")


def rewards(layers: str, flags: Sequence[str]) -> list[float]:
    """Mean reward of every step of one run; its folder is named last."""
    command = [sys.executable, "-m", "lightrft", "train", "tiny", *layers.split(), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = (Path(flags[-1]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["reward/mean"] for r in map(json.loads, lines) if "reward/mean" in r]


def draw(curves: Mapping[str, Sequence[Sequence[float]]], place: Path) -> None:
    """One small panel per row: the mean over seeds, and from the lowest to the highest."""
    require("matplotlib", "plots").use("Agg")
    plt = require("matplotlib.pyplot", "plots")

    columns = 5
    lines = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 1.9 * lines), sharex=True, sharey=True, squeeze=False
    )
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < len(curves))
    for axis, (row, runs) in zip(axes.flat, curves.items(), strict=False):
        steps = range(1, len(runs[0]) + 1)
        by_step = list(zip(*runs, strict=True))
        axis.fill_between(
            steps, [min(x) for x in by_step], [max(x) for x in by_step], alpha=0.25, linewidth=0
        )
        axis.plot(steps, [statistics.mean(x) for x in by_step])
        axis.set_title(row, fontsize=9)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("mean reward", fontsize=9)
    figure.tight_layout()
    figure.savefig(place, dpi=110)


if __name__ == "__main__":
    main()
