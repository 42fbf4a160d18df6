"""The examples run as their README says, from the root of the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch.testing import assert_close

from lightrft.config import ModelConfig, NativeEngineConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.trainer.batching import pack
from lightrft.types import Record, Sampling, Trajectory
from tests.e2e.runs import PLAIN, environment, steps

ROOT = Path(__file__).resolve().parents[2]
FILES = ["examples/custom_loss/mine.py", "examples/custom_loss/mine.yaml"]


@pytest.fixture(autouse=True)
def examples(tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")


def test_a_loss_an_advantage_and_a_choice_of_ones_own(lightrft, tmp_path):
    lightrft("train", "tiny", "examples/custom_loss/mine.yaml", *PLAIN, "--run", "run")
    taken = steps(tmp_path / "run")
    assert len(taken) == 4
    assert any(row["grad_norm"] > 0 for row in taken)


def test_a_reward_of_ones_own(lightrft, tmp_path):
    lightrft(
        "train",
        "tiny",
        *PLAIN,
        "--run",
        "run",
        "--rewards.functions",
        "examples/custom_loss/mine.py:short",
        "1",
    )
    assert all(0 < row["reward/short"] <= 1 for row in steps(tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("bound 3", "needs the option 'at_least'"),
        ("bound 3 at_least 0 bond 2", "Did you mean 'bound'?"),
    ],
)
def test_options_are_checked_at_start_up(lightrft, options, message):
    arguments = ["--algorithm.options", *options.split()]
    assert message in lightrft("train", "tiny", "examples/custom_loss/mine.yaml", *arguments, status=2)


@pytest.mark.parametrize(("sense", "kind"), [("hearing", "audio"), ("seeing", "image")])
def test_a_small_architecture_from_nothing_reads_and_answers(tmp_path, sense, kind):
    """Of a size that can be taught on a laptop; engine and trainer agree about it."""
    pytest.importorskip("PIL")
    made = [sys.executable, str(ROOT / "examples/from_scratch/make.py"), sense, str(tmp_path / "model")]
    subprocess.run(made, check=True, env=environment(), capture_output=True)
    settings = ModelConfig(path=f"random:{tmp_path / 'model'}")
    model, processor = load_model(settings), load_processor(settings)
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 30e6
    medium = {
        "audio": {"array": numpy.sin(numpy.arange(9000) / 9).astype("float32"), "sampling_rate": 16_000},
        "image": numpy.full((30, 40, 3), 128, dtype=numpy.uint8),
    }
    content = [{"type": kind, kind: medium[kind]}, {"type": "text", "text": "What?"}]
    prompt = processor.open(processor.prompt(Record("r", [{"role": "user", "content": content}], None, "t")))
    assert prompt.media
    engine = NativeEngine(model, processor.stop_ids, processor.text, NativeEngineConfig())
    (answers,) = engine.generate([prompt], Sampling(n=2, max_tokens=5))
    drawn = [
        Trajectory(prompt, 0, a.token_ids, [True] * len(a.token_ids), a.logprobs, a.finish) for a in answers
    ]
    batch = pack(drawn)
    with torch.no_grad():
        assert_close(
            logprobs(model, batch, temperature=1.0, max_logits=9999).values, batch.behavior, atol=1e-4, rtol=0
        )


def test_grpo_in_one_file_over_the_parts_learns():
    """The proof that the parts are good: the loop takes no more than 150 lines, and is one of these runs."""
    file = ROOT / "examples/loop.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 150
    command = [sys.executable, str(file), "--steps", "16"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    rewards = [float(line.split("reward ")[1].split()[0]) for line in done.stdout.splitlines()]
    assert len(rewards) == 16
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.05


def test_safe_rlhf_on_a_tiny_model_prints_what_three_policies_became(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "examples/safe_rlhf.py"),
        str(tmp_path),
        "--steps",
        "2",
        "--reward-steps",
        "8",
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    for name in ("before", "general alone", "general under a limit", "cost alone"):
        assert f"\n{name:22}" in done.stdout, done.stdout
    prices = done.stdout.split("multiplier by step: ")[1].splitlines()[0].split(", ")
    assert len(prices) == 2
    assert all(float(price) >= 0 for price in prices)
