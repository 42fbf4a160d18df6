"""Runs whose policy speaks with an environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightrft.runs import trajectories
from tests.e2e.runs import PLAIN, ROOT, Lightrft, steps, summary

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
    score = summary(lightrft.cwd / "run")["evaluation"]["after"]
    assert score <= 0.4 if blind else score >= 0.9


def test_a_run_with_tools_is_saved_shown_checked_and_resumed(lightrft: Lightrft):
    """A calculator that a model of random weights never calls: its first turn is its last."""
    tools = [
        "--environment.tools",
        "calc",
        "--rollout.max-tokens",
        "40",
        "--log.trajectories-every-steps",
        "1",
    ]
    lightrft("train", "tiny", *PLAIN, *tools, "--steps", "2", "--run", "run")
    rows = trajectories.load(lightrft.cwd / "run", 1)
    assert all(row["said"][-1] == {"role": "assistant", "content": row["response"]} for row in rows)
    assert all(row["rollout/turns"] == 1 for row in steps(lightrft.cwd / "run"))
    assert "1 turns" in lightrft("view", "run", "--step", "1", "--best", "1")
    lightrft("train", "--resume", "run", "--steps", "3")
    assert len(steps(lightrft.cwd / "run")) == 3
    told = lightrft("check", "tiny", *tools, status=0)
    assert "between turns" in told
    assert "in role tool" in told


def test_an_evaluation_leaves_failures_out_and_counts_for_itself(lightrft: Lightrft):
    """Every second held-out episode fails, in a run that failures would stop (environment.on_failure=raise)."""
    talk = [
        *("--tasks.train", "episodes", "1", "--environment.workers", "0", "--environment.turn-tokens", "4"),
        *("--environment.name", f"{HERE.parent}/unit/environments/talkers.py:FailsHeldOut"),
        *("--environment.options", "kind", "raise", "--rollout.max-tokens", "120", "--evaluate.limit", "8"),
    ]
    lightrft("train", "tiny", *PLAIN, *talk, "--steps", "1", "--run", "run")
    (row,) = steps(lightrft.cwd / "run")
    assert row["environment/spoken"] == 3 * 16, (
        "three turns of each response of the step, and none of the evaluations"
    )
    assert not {"environment/failed", "environment/restarted"} & row.keys()
    report = json.loads((lightrft.cwd / "run/evaluation/after.json").read_text())["episodes"]
    assert (report["responses"], report["failed_rewards"], report["score"]["mean"]) == (4, 4, 3.0)


def test_an_agent_program_trains_what_it_asks(lightrft: Lightrft):
    """The example; the schema of its tool, which it sends with each request, is in the prompt."""
    agent = [
        *("--tasks.train", "calculator", "1", "--rewards.functions", "environment", "1"),
        *(
            "--environment.name",
            "agent",
            "--environment.options",
            "program",
            f"{ROOT}/examples/agent.py:solve",
        ),
        *("--rollout.max-tokens", "40", "--evaluate.limit", "4", "--log.trajectories-every-steps", "1"),
    ]
    lightrft("train", "tiny", *PLAIN, *agent, "--steps", "2", "--run", "run")
    rows = trajectories.load(lightrft.cwd / "run", 2)
    assert {row["messages"][0]["role"] for row in rows} == {"user"}, (
        "the question alone, as the program asks it"
    )
    assert {(len(row["messages"]), row["reward"]) for row in rows} == {(1, 0.0)}
    first, _ = steps(lightrft.cwd / "run")
    assert first["rollout/read_tokens"] > 4 * 300, "four prompts, in bytes, with the schema"


def test_conversations_that_fork_are_learned_replayed_saved_shown_and_resumed(lightrft: Lightrft):
    """By a mixture of experts, whose choices at sampling are replayed in each row."""
    forking = [
        *("--model", "random:qwen3_moe", "--rollout.routing-replay", "sampling"),
        *("--algorithm.router-aux-coefficient", "-1"),
        *("--environment.name", f"{HERE.parent}/unit/environments/talkers.py:Forking"),
        *("--environment.forks", "true", "--environment.turn-tokens", "6", "--environment.workers", "1"),
        *("--rewards.functions", "environment", "1", "--replay.groups-per-step", "2", "--update.epochs", "2"),
        *("--log.trajectories-every-steps", "1", "--rollout.max-tokens", "300", "--evaluate.limit", "2"),
    ]
    lightrft("train", "tiny", *PLAIN, *forking, "--steps", "2", "--run", "run")
    lightrft("train", "--resume", "run", "--steps", "3")
    found = steps(lightrft.cwd / "run")
    assert [row["environment/forks"] for row in found] == [2 * row["counts/responses"] for row in found]
    assert all(row["router/replayed"] == 1 and row["mismatch/max"] < 1e-5 for row in found)
    rows = trajectories.load(lightrft.cwd / "run", 3)
    assert {row["origin"] for row in rows} == {"sampled", "replayed"}
    for row in rows:
        again, back = row["forks"]
        assert (again["shared"], back["shared"]) == (0, 1)
        assert back["said"][0]["role"] == "user"
        tokens = back["tokens"]
        assert len({len(column) for column in tokens.values()}) == 1
        assert {"ids", "mask", "behavior", "old", "advantages"} <= tokens.keys()
        assert row["reward"] == sum(row["step_rewards"])
        assert len(row["step_rewards"]) == 6
    assert "fork 2" in lightrft("view", "run", "--step", "3", "--best", "1")


def test_what_cannot_go_with_an_environment_is_refused_by_name(lightrft: Lightrft):
    for flags, told in (
        (["--rollout.overlap-rewards", "true"], "rollout.overlap_rewards"),
        (["--rollout.max-tokens-per-step", "4"], "rollout.max_tokens_per_step"),
        (["--environment.name", "gem:make"], "environment.tools"),
        (["--environment.turn-tokens", "9000"], "environment.turn_tokens"),
        (["--environment.max-turns", "0"], "environment.max_turns"),
    ):
        done = lightrft("train", "tiny", "--environment.tools", "calc", *flags, status=2)
        assert told in done
    forks = [
        "--environment.name",
        f"{HERE.parent}/unit/environments/talkers.py:Forking",
        "--environment.forks",
        "true",
    ]
    for layers, flags, told in (
        (["ppo"], [], "algorithm.advantage=gae"),
        (["online_dpo"], [], "algorithm.loss="),
        ([], ["--algorithm.high-entropy-fraction", "0.2"], "algorithm.high_entropy_fraction=0.2"),
        (
            [],
            ["--algorithm.kl-coefficient", "0.1", "--algorithm.kl-in", "reward"],
            "algorithm.kl_in=reward",
        ),
        (["opo"], [], "algorithm.advantage=length_weighted_mean"),
        ([], ["--algorithm.whiten", "true"], "algorithm.whiten=true"),
        ([], ["--algorithm.overlong-buffer", "4"], "algorithm.overlong_buffer=4"),
    ):
        done = lightrft("train", "tiny", *layers, *forks, *flags, status=2)
        assert f"environment.forks=true with {told}" in done
    assert "has no effect with environment.name=search" in lightrft(
        "train", "tiny", "--environment.name", "search", "--environment.forks", "true", status=2
    )
