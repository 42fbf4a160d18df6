"""The table in trainer/metrics.py and what runs log are the same list."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from lightrft.trainer.metrics import METRICS
from tests.e2e.runs import PLAIN, Lightrft
from tests.e2e.test_comparing import ENGINE, JUDGE, OFF, REWARD, RUN

BROKEN = """
import math, torch
from lightrft.algorithms.losses import clipped
from lightrft.types import Terms

def some_fail(answer: str) -> float:
    return math.nan if answer < "8" else float(len(answer))

def nan_at_step_2(new, batch, algo):
    terms = clipped(new, batch, algo)
    return Terms(terms.loss * (torch.nan if (batch.groups // 4 == 1).any() else 1), terms.metrics)
"""
PLACEHOLDERS = {
    "reward/": "reward/PART",
    "counts/failed/": "counts/failed/PART",
    "environment/": "environment/COUNT",
    "evaluation/": "evaluation/TASK",
    "held_out_nll/": "held_out_nll/TASK",
    "held_out_error/": "held_out_error/TASK",
    "pairs/": "pairs/TASK/OUTPUT/MEASURE",
    "straggler/rank/": "straggler/rank/PHASE",
    "straggler/": "straggler/PHASE",
    "memory/device/": "memory/device/PHASE",
}


def general(name):
    """The row of the table that a logged name falls under."""
    if name in METRICS:
        return name
    return next((row for start, row in PLACEHOLDERS.items() if name.startswith(start)), name)


def logged(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {general(name) for line in lines for name in json.loads(line)} - {"step", "time"}


@pytest.fixture(scope="session")
def eventful_run(server, tmp_path_factory):
    """A run in which everything happens that a metric tells of."""
    folder = tmp_path_factory.mktemp("eventful")
    (folder / "broken.py").write_text(BROKEN)
    flags = [
        "--rewards.functions",
        "broken.py:some_fail",
        "1",
        "--rewards.on-failure",
        "drop",
        "--algorithm.loss",
        "broken.py:nan_at_step_2",
        *("--strategy.peak-teraflops", "1"),
        *("--rollout.max-staleness", "1", "--strategy.device", "cpu"),
        *("--model.path", "random:qwen3_moe", "--rollout.routing-replay", "sampling"),
        *("--algorithm.router-aux-coefficient", "-1"),
    ]
    Lightrft(server, folder)("train", "tiny", "grpo", *PLAIN, "--run", "run", "--steps", "2", *flags)
    return folder / "run"


@pytest.fixture(scope="session")
def critical_run(server, tmp_path_factory):
    """A run with a critic whose weights overflow at its first update, a teacher, a constraint, and what else can be logged."""
    folder = tmp_path_factory.mktemp("critical")
    flags = [
        *("--critic.optimizer.learning-rate", "1e38", "--algorithm.overlong-buffer", "2"),
        *("--rollout.prompts-per-step", "4", "--rollout.group-size", "4", "--steps", "2"),
        *(
            "--algorithm.group-filter",
            "mixed_outcomes",
            "--rollout.extra-groups",
            "carry_over",
            "--constraint.cost",
            "length",
        ),
        *("--rollout.max-tokens-per-step", "6", "--algorithm.entropy-target", "1.0"),
        *("--algorithm.off-policy-mask-limit", "0.5", "--rollout.rest-passes", "1"),
        *("--rollout.priority-floor", "0.5"),
        *("--algorithm.options", "dual_clip", "3"),
        *("--algorithm.teacher-coefficient", "0.1", "--teacher.path", "random:llama"),
    ]
    Lightrft(server, folder)("train", "tiny", "ppo", *PLAIN, "--run", "run", *flags)
    return folder / "run"


@pytest.fixture(scope="session")
def supervised_run(server, tmp_path_factory):
    """A run of supervised fine-tuning."""
    folder = tmp_path_factory.mktemp("supervised")
    Lightrft(server, folder)(
        "sft", "sft_tiny", "--log.curves=false", "--log.progress=false", "--steps", "2", "--run", "run"
    )
    return folder / "run"


@pytest.fixture(scope="session")
def rating_run(server, tmp_path_factory):
    """A run that trains a reward model."""
    folder = tmp_path_factory.mktemp("rating")
    Lightrft(server, folder)(
        "reward", "reward_tiny", "--log.curves=false", "--log.progress=false", "--steps", "2", "--run", "run"
    )
    return folder / "run"


@pytest.fixture(scope="session")
def preferring_run(server, tmp_path_factory):
    """A run that learns preferences without reinforcement learning; its pairs are told apart one by one and by each other."""
    folder = tmp_path_factory.mktemp("preferring")
    for loss in ("dpo", "kto"):
        flags = [
            "--loss",
            loss,
            "--options",
            "beta",
            "0.1",
            "--log.curves=false",
            "--log.progress=false",
            "--steps",
            "2",
        ]
        Lightrft(server, folder)("dpo", "dpo_tiny", *flags, "--run", loss)
    whole = folder / "run"
    whole.mkdir()
    lines = [(folder / loss / "metrics.jsonl").read_text() for loss in ("dpo", "kto")]
    (whole / "metrics.jsonl").write_text("".join(lines))
    return whole


@pytest.fixture(scope="session")
def comparing_run(server, tmp_path_factory):
    """A run whose judge compares responses."""
    folder = tmp_path_factory.mktemp("comparing")
    (folder / "counting.py").write_text(ENGINE)
    flags = [*JUDGE, *REWARD, *OFF, "--judge.against", "siblings", "--steps", "1"]
    Lightrft(server, folder)("train", *RUN, *flags)
    return folder / "run"


@pytest.fixture(scope="session")
def talking_run(server, tmp_path_factory):
    """A run with an environment that fails in some conversations."""
    folder = tmp_path_factory.mktemp("talking")
    talker = Path(__file__).parents[1] / "unit/environments/talkers.py"
    flags = [
        *("--environment.name", f"{talker}:Moody", "--environment.options", "kind", "raise"),
        *("--environment.on-failure", "drop", "--environment.turn-tokens", "4", "--steps", "1"),
        *("--environment.workers", "0", "--rollout.max-tokens", "60"),
    ]
    Lightrft(server, folder)("train", "tiny", *PLAIN, *OFF, "--run", "run", *flags)
    return folder / "run"


@pytest.fixture(scope="session")
def all_logged(
    tiny_run,
    eventful_run,
    critical_run,
    supervised_run,
    rating_run,
    preferring_run,
    comparing_run,
    talking_run,
    request,
):
    drawing = [request.getfixturevalue("drawing_run")] if find_spec("diffusers") else []
    drawing += [request.getfixturevalue("taught_to_draw")] if find_spec("diffusers") else []
    learning = (tiny_run, eventful_run, critical_run, comparing_run, talking_run, *drawing)
    return set().union(*map(logged, (*learning, supervised_run, rating_run, preferring_run)))


def test_every_metric_of_a_run_is_in_the_table(all_logged):
    assert sorted(all_logged - METRICS.keys()) == []


def test_every_metric_of_the_table_is_logged_by_some_run(all_logged):
    # See tests/unit/parallel/test_world.py, tests/distributed/test_several_ranks.py.
    of_several_ranks = {"update/rank_balance", "straggler/PHASE", "straggler/rank/PHASE"}
    # See tests/unit/strategy/test_memory.py, tests/unit/strategy/test_twins.py, tests/accelerator; offloading is off by default.
    of_accelerators = {"counts/offload_gib", "offload/gib_per_second"}
    if not torch.accelerator.is_available():
        of_accelerators.add("memory/device/PHASE")
    # See tests/unit/strategy/test_scaling.py.
    of_float16 = {f"{of}{name}" for of in ("", "critic/") for name in ("loss_scale", "counts/loss_overflows")}
    of_pictures = {"diversity/image", "error", "held_out_error/TASK", "held_out_error/mean"}
    of_pictures = set() if find_spec("diffusers") else of_pictures
    assert (
        sorted(METRICS.keys() - all_logged - of_several_ranks - of_accelerators - of_float16 - of_pictures)
        == []
    )


def test_every_meaning_is_a_phrase():
    for name, meaning in METRICS.items():
        assert len(meaning.split()) > 2, name
        assert not meaning.endswith("."), name
