"""The examples run as their README says, from the root of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.runs import PLAIN, steps

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
