"""Learning curves of every algorithm on one tiny task: mean and spread over seeds, in one picture.

    python benchmarks/algorithms.py

Each shipped row trains the random model of `lightrft train tiny` for some steps with the same answers per step and the
same learning rate, so this shows that and how each learns, not which is best: nothing is tuned, and the task is a toy.
Writes results/algorithms.json and docs/algorithms.png.
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

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "algorithms.png"
GROUPS = ["--rollout.prompts-per-step", "8", "--rollout.group-size", "8"]
SINGLE = ["--rollout.prompts-per-step", "64", "--rollout.group-size", "1"]
ROWS: dict[str, list[str]] = {
    "grpo": GROUPS,
    "dr_grpo": GROUPS,
    "dapo": GROUPS,
    "gspo": [*GROUPS, "--algorithm.clip", "0.003", "0.004"],
    "gmpo": [*GROUPS, "--update.num-minibatches", "2"],
    "cispo": [*GROUPS, "--update.num-minibatches", "2"],
    "sapo": [*GROUPS, "--update.num-minibatches", "2"],
    "cpgd": [*GROUPS, "--update.num-minibatches", "2"],
    "rloo": GROUPS,
    "opo": GROUPS,
    "pf_ppo": GROUPS,
    "remax": [*SINGLE, "--algorithm.whiten", "true", "--algorithm.kl-coefficient", "0"],
    "reinforce": SINGLE,
    "reinforce_pp": SINGLE,
    "reinforce_pp_baseline": GROUPS,
    "ppo": [*SINGLE, "--critic.optimizer.learning-rate", "3e-3"],
    "distil": GROUPS,
    "grpo fire": [*GROUPS, "--rollout.first-token-temperature", "2", "--rollout.first-token-top-k", "0"],
    "grpo entropy_tokens": [*GROUPS, "--algorithm.high-entropy-fraction", "0.5"],
    "grpo lagrangian": [*GROUPS, "--constraint.limit", "0.004", "--constraint.learning-rate", "500"],
}
"""Layers -> what they need here: 64 answers per step for all; bounds and rates that suit so small a model.

`distil` learns from a model that `grpo` trained. `ttrl` is not among them: no two answers to this task say the same, so
there is nothing to vote about.
"""


def main() -> None:
    """Trains every row with every seed, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", default="3e-3")
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
            ends = [statistics.mean(curve[-5:]) for curve in curves[row]]
            compare.say(f"{row}: reward of the last five steps {min(ends):.2f} - {max(ends):.2f}")
            compare.write_results("algorithms", {"steps": options.steps, "curves": curves})
    draw(curves)
    print(f"picture: {PICTURE}")


def rewards(layers: str, flags: Sequence[str]) -> list[float]:
    """Mean reward of every step of one run; its folder is named last."""
    command = [sys.executable, "-m", "lightrft", "train", "tiny", *layers.split(), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = (Path(flags[-1]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [r["reward/mean"] for r in map(json.loads, lines) if "reward/mean" in r]


def draw(curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """One small panel per row: the mean over seeds, and from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = 5
    lines = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.6 * columns, 1.9 * lines), sharex=True, sharey=True, squeeze=False
    )
    for place, axis in enumerate(axes.flat):
        axis.set_visible(place < len(curves))
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
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
