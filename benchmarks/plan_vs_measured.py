"""What `lightrft plan` says that a process needs, and what real runs of one and two processes took, phase by phase.

    python benchmarks/plan_vs_measured.py

A model of 110 million random weights takes three training steps on the CPU. Measured is the most that a process held in a
phase of the last two (VmHWM of /proc, reset when a phase begins), less what it held before it made anything. glibc is told to
give freed blocks back, so that what is counted is in use. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from lightrft.build.data import prompts_of
from lightrft.build.rl import build_run
from lightrft.commands.plan import GIB, Hardware, Lengths, plan
from lightrft.config import Config, layers
from lightrft.models.load import load_processor
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.tasks.table import load_task
from lightrft.testing import tiny_folder
from lightrft.utils.device import peak_gib, resident_gib
from tests.distributed.launch import together

SHAPE: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
}  # fmt: skip
FLAGS = (
    "--steps 3 --rollout.prompts-per-step 4 --rollout.group-size 4 --rollout.max-tokens 64 --update.tokens-per-micro-batch 256 "
    "--strategy.device cpu --evaluate.before-and-after false --checkpoint.every-steps 0 --log.progress false --rewards.workers 0"
)
CASES: dict[str, tuple[int, str]] = {
    "single": (1, "dr_grpo"),
    "single, with a reference": (1, "dr_grpo --algorithm.kl-coefficient 0.01"),
    "single, PPO": (1, "ppo"),
    "single, recomputed": (1, "dr_grpo --model.gradient-checkpointing true"),
    "single, bfloat16": (1, "dr_grpo bf16"),
    "single, LoRA": (1, "dr_grpo lora"),
    "FSDP2": (2, "dr_grpo fsdp"),
    "FSDP2, with a reference": (2, "dr_grpo fsdp --algorithm.kl-coefficient 0.01"),
    "FSDP2, weights kept": (2, "dr_grpo fsdp --strategy.fsdp.reshard-after-forward false"),
    "ZeRO 1": (2, "dr_grpo zero1 --strategy.deepspeed.bucket-mib 32"),
    "ZeRO 2": (2, "dr_grpo zero2 --strategy.deepspeed.bucket-mib 32"),
    "ZeRO 3": (
        2,
        "dr_grpo zero3 --strategy.deepspeed.bucket-mib 32 --strategy.deepspeed.max-live-parameters 0",
    ),
}
"""Name -> processes, and layers and flags."""


class MeasuredStage(MemoryPlan):
    """Keeps the most that the process held in each phase."""

    peaks: dict[Phase, float]

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """See MemoryPlan."""
        with super().__call__(phase):
            yield
        self.peaks[phase] = max(self.peaks.get(phase, 0.0), peak_gib())

    def _enter(self, phase: Phase) -> None:
        super()._enter(phase)
        Path("/proc/self/clear_refs").write_text("5")  # what only the last phase needed has gone


def of_rank(args: list[str]) -> dict[str, float]:
    """GiB by phase that this process held at most, beyond what it held before."""
    config = layers.load(args, Config)
    torch.ones(64, 64, requires_grad=True).mm(torch.ones(64, 64)).sum().backward()
    with tempfile.TemporaryDirectory() as run, contextlib.ExitStack() as stack:
        before = resident_gib()
        made = build_run(config, Path(run), stack, started=time.perf_counter())
        mmap_threshold = -3
        ctypes.CDLL(None).mallopt(mmap_threshold, 65536)
        made.memory_plan.__class__ = MeasuredStage
        made.memory_plan.peaks = {}  # type: ignore[attr-defined]
        made.begin()
        made.take(1)
        made.memory_plan.peaks.clear()  # type: ignore[attr-defined]
        for step in (2, 3):
            made.take(step)
        return {phase.value: peak - before for phase, peak in made.memory_plan.peaks.items()}  # type: ignore[attr-defined]


def predicted(args: list[str], devices: int) -> dict[str, float]:
    """GiB by phase of the plan, for the longest question there is."""
    config = layers.load(args, Config)
    processor = load_processor(config.model)
    asked = prompts_of(config, load_task("tiny"), "train", processor)
    lengths = Lengths(max(len(p.token_ids) for p in asked), config.rollout.max_tokens)
    found = plan(config, Hardware(devices, 64.0), lengths)
    return {phase.value: count / GIB for phase, count in found.sums.items()}


def main() -> None:
    """Measures and prints."""
    wanted = sys.argv[1:]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print(f"{'':26} {'phase':8} {'planned':>8} {'measured':>9} {'ratio':>6}   GiB of a process")
    with tempfile.TemporaryDirectory() as place:
        folder = str(tiny_folder(Path(place) / "model", "llama", **SHAPE))
        for name, (processes, words) in CASES.items():
            if wanted and name not in wanted:
                continue
            if "zero" in words and find_spec("deepspeed") is None:
                print(f"{name}: left out, DeepSpeed is not installed")
                continue
            args = ["tiny", *words.split(), "--model.path", folder, *FLAGS.split()]
            ranks = together(of_rank, processes, args, seconds=900)
            planned = predicted(args, processes)
            for phase in ranks[0]:
                most = max(rank[phase] for rank in ranks)
                print(
                    f"{name:26} {phase:8} {planned[phase]:8.2f} {most:9.2f} {planned[phase] / most:6.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
