"""Runs whose policy speaks with an environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.runs import PLAIN, Lightrft, summary

HERE = Path(__file__).parent
TOLD = [
    *(
        "--tasks.train",
        f"{HERE}/told.py:told",
        "1",
        "--environment.name",
        f"{HERE.parent}/unit/environments/talkers.py:Told",
    ),
    *("--environment.max-turns", "2", "--environment.turn-tokens", "6", "--rollout.max-tokens", "40"),
    *(
        "--environment.workers",
        "1",
        "--optimizer.learning-rate",
        "3e-3",
        "--update.tokens-per-micro-batch",
        "4096",
    ),
    *("--rollout.prompts-per-step", "12", "--rollout.group-size", "8", "--evaluate.limit", "120"),
    *("--checkpoint.every-steps", "0", "--log.trajectories-every-steps", "0"),
]


@pytest.mark.parametrize(("blind", "count"), [(False, 160), (True, 60)])
def test_it_learns_what_a_reply_tells_and_not_without(blind, count, lightrft: Lightrft):
    options = ["--environment.options", "blind", "true"] if blind else []
    lightrft("train", "tiny", *PLAIN, *TOLD, *options, "--steps", str(count), "--run", "run")
    score = summary(lightrft.folder / "run")["evaluation"]["after"]["told"]
    assert score <= 0.4 if blind else score >= 0.9
