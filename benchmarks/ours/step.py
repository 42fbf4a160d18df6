"""One GRPO step of LightRFT through its app: prints a JSON line with seconds, tokens and peak memory.

The first step warms up and is not counted. Answers never end early: the engine is built without end tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
import work
from torch import nn

import lightrft
from lightrft import Config, RLTrainer, Trajectory
from lightrft.build.rl import build_run
from lightrft.config import (
    CheckpointConfig,
    EvaluateConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    RewardConfig,
    RolloutConfig,
    TaskConfig,
    UpdateConfig,
)
from lightrft.engines.native import NativeEngine
from lightrft.models.load import load_processor
from lightrft.models.logprobs import causal_lm
from lightrft.models.processor import Processor
from lightrft.runs.folder import new_run


def endless_engine(module: nn.Module, processor: Processor, config: RolloutConfig) -> NativeEngine:
    """The native engine, which no token stops: every answer has rollout.max_tokens tokens."""
    return NativeEngine(causal_lm(module), frozenset(), processor.text, config.native)


@dataclass
class MeasuredTrainer(RLTrainer):
    """The trainer as it is, with every step's metrics kept."""

    steps: list[dict[str, float]] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def train_step(self, step: int) -> tuple[dict[str, float], list[Trajectory]]:
        started = time.process_time()
        found = super().train_step(step)
        self.cpu_seconds.append(time.process_time() - started)
        return found

    def record(self, step: int, metrics: dict[str, float], trajectories: list[Trajectory]) -> None:
        tokens = float(sum(map(len, trajectories)))
        differ = float(len({t.reward for t in trajectories}) > 1)
        self.steps.append({**metrics, "tokens": tokens, "rewards_differ": differ})


def parse() -> argparse.Namespace:
    """Every setting of the work, and those that we may choose to be fast."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="what model.path takes")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=1, help="measured steps, after one that is not")
    parser.add_argument("--tokens-per-micro-batch", type=int, default=1024)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args()


def configure(options: argparse.Namespace, folder: Path) -> Config:
    """The same work as on TRL's side; all else as LightRFT has it by default."""
    model = ModelConfig(path=options.model, dtype=options.precision)
    questions = work.conversations(
        load_processor(model).tokenizer, count=2 * options.prompts, num_tokens=options.prompt_tokens, seed=0
    )
    rows = folder / "questions.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": q, "target": ""}) + "\n" for q in questions), encoding="utf-8"
    )
    return Config(
        run=str(folder / "run"),
        steps=1 + options.steps,
        trainer="step:MeasuredTrainer",
        model=model,
        tasks=TaskConfig(train={"file": 1.0}, train_file=str(rows)),
        rollout=RolloutConfig(
            engine="step:endless_engine",
            prompts_per_step=options.prompts,
            group_size=options.group_size,
            max_tokens=options.new_tokens,
        ),
        rewards=RewardConfig(functions={"work:score": 1.0}),
        optimizer=OptimizerConfig(learning_rate=1e-6),
        update=UpdateConfig(tokens_per_micro_batch=options.tokens_per_micro_batch),
        checkpoint=CheckpointConfig(every_steps=0),
        evaluate=EvaluateConfig(before_and_after=False),
        log=LogConfig(progress=False, tensorboard=False, trajectories_every_steps=0),
    )


def main() -> None:
    """Trains `1 + steps` steps and reports the means over the measured ones."""
    options = parse()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        config = configure(options, Path(scratch))
        made = build_run(config, new_run(config), stack, started=time.perf_counter())
        trainer = made.trainer
        made.begin()
        for step in range(1, config.steps + 1):  # without the end of a run: neither side saves
            made.take(step)
    measured: Sequence[dict[str, float]] = trainer.steps[1:]
    mean = {name: sum(m[name] for m in measured) / len(measured) for name in measured[0]}
    seconds = {
        name.removeprefix("seconds/"): value for name, value in mean.items() if name.startswith("seconds/")
    }
    answers = options.prompts * options.group_size
    if mean["tokens"] != answers * options.new_tokens or not mean["rewards_differ"]:
        raise RuntimeError(
            f"not the agreed work: {mean['tokens']} tokens, rewards differ: {mean['rewards_differ']}."
        )
    work.report(
        side="lightrft",
        settings={k: v for k, v in vars(options).items() if k != "model"},
        versions={
            "lightrft": lightrft.__version__, "transformers": transformers.__version__, "torch": torch.__version__,
        },
        threads=torch.get_num_threads(),
        seconds={**seconds, "generation": seconds["rollout"]},
        cpu_seconds={"step": sum(trainer.cpu_seconds[1:]) / options.steps},
        training_seconds=seconds["step"] - seconds["rollout"],
        tokens=answers * options.new_tokens,
        gradient_norm=mean["grad_norm"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
