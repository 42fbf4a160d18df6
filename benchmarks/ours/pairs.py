"""Steps of `lightrft reward` or `lightrft dpo` on given pairs: prints a JSON line with seconds, CPU seconds and peak memory.

The first step warms up and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from importlib import import_module
from pathlib import Path

import torch
import transformers
import work

import lightrft
from lightrft.config import (
    CheckpointConfig,
    DPOConfig,
    HeldOutConfig,
    ModelConfig,
    OptimizerConfig,
    RewardTrainingConfig,
    SFTLogConfig,
    TaskConfig,
    UpdateConfig,
)
from lightrft.runs.folder import new_run

FORMAT = "lightrft.datasets.preferences:compared"


def parse() -> argparse.Namespace:
    """Every setting of the work, and those that we may choose to be fast."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="what model.path takes")
    parser.add_argument("--rows", required=True, help="file with pairs, made by work.py")
    parser.add_argument("--kind", choices=["reward", "dpo"], required=True)
    parser.add_argument("--pairs", type=int, default=8, help="of one step")
    parser.add_argument(
        "--repetition", type=int, default=0, help="which pairs of the file: from so many steps on"
    )
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one that is not")
    parser.add_argument("--tokens-per-micro-batch", type=int, default=2048)
    return parser.parse_args()


def configure(options: argparse.Namespace, run: Path, rows: Path) -> RewardTrainingConfig | DPOConfig:
    """The same work as on TRL's side; all else as LightRFT has it by default."""
    kind = RewardTrainingConfig if options.kind == "reward" else DPOConfig
    return kind(
        run=str(run),
        steps=1 + options.steps,
        batch_size=options.pairs,
        model=ModelConfig(path=options.model),
        tasks=TaskConfig(train={"file": 1.0}, train_file=str(rows), format=FORMAT),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        update=UpdateConfig(tokens_per_micro_batch=options.tokens_per_micro_batch),
        checkpoint=CheckpointConfig(every_steps=0),
        evaluate=HeldOutConfig(before_and_after=False),
        log=SFTLogConfig(progress=False, tensorboard=False),
    )


def main() -> None:
    """Trains `1 + steps` steps and reports the means over the measured ones."""
    options = parse()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        rows = Path(scratch) / "rows.jsonl"
        some = work.pairs(options.rows, options.pairs, options.repetition)
        rows.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        config = configure(options, Path(scratch) / "run", rows)
        build_run = import_module(f"lightrft.build.{options.kind}").build_run
        made = build_run(config, new_run(config, options.kind), stack, started=time.perf_counter())
        made.begin()
        made.take(1)
        wall, cpu = time.perf_counter(), time.process_time()
        for step in range(2, config.steps + 1):
            made.take(step)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    work.report(
        side="lightrft",
        settings={k: v for k, v in vars(options).items() if k not in ("model", "rows")},
        versions={
            "lightrft": lightrft.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        threads=torch.get_num_threads(),
        seconds={"step": wall / options.steps},
        cpu_seconds={"step": cpu / options.steps},
    )


if __name__ == "__main__":
    main()
