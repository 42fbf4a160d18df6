"""It learns: the reward on questions never trained on rises far above chance, with each shipped algorithm."""

from __future__ import annotations

import pytest
import torch

from lightrft.models.load import save_model
from lightrft.testing import tiny_model, tiny_processor
from tests.e2e.runs import PLAIN, Lightrft, steps, summary

FORTY_STEPS = [
    *("--steps", "40", "--optimizer.learning-rate", "3e-3", "--update.tokens-per-batch", "2048"),
    *("--rollout.prompts-per-step", "8", "--rollout.group-size", "8", "--evaluate.limit", "60"),
    *("--checkpoint.every-steps", "0", "--log.trajectories-every-steps", "0"),
]


@pytest.mark.parametrize(
    ("layers", "flags"),
    [
        (["grpo"], []),
        (["dr_grpo"], []),
        (["dapo"], ["--algorithm.overlong-buffer", "2", "--update.minibatches", "2", "--steps", "70"]),
        (["rloo"], []),
        (["opo"], []),
        (["gspo"], ["--algorithm.clip", "0.003", "0.004"]),
        (["gmpo"], ["--update.minibatches", "2"]),
        (["cispo"], ["--update.minibatches", "2"]),
        (["sapo"], ["--update.minibatches", "2"]),
        (["cpgd"], ["--update.minibatches", "2"]),
        (["reinforce_pp_baseline"], []),
        (["reinforce_pp"], ["--rollout.prompts-per-step", "64", "--rollout.group-size", "1"]),
        (
            ["remax"],
            [
                "--rollout.prompts-per-step",
                "64",
                "--rollout.group-size",
                "1",
                "--algorithm.whiten",
                "true",
                "--algorithm.kl-coefficient",
                "0",
                "--steps",
                "70",
            ],
        ),
        (["pf_ppo"], []),
        (
            ["ppo"],
            [
                "--rollout.prompts-per-step",
                "64",
                "--rollout.group-size",
                "1",
                "--critic.optimizer.learning-rate",
                "3e-3",
            ],
        ),
        (["grpo", "entropy_tokens"], ["--algorithm.entropy-share", "0.5", "--steps", "70"]),
        (["grpo", "fire"], ["--rollout.first-temperature", "2", "--rollout.first-top-k", "0"]),
        (["grpo"], ["--algorithm.correction", "truncate", "--algorithm.correction-level", "sequence"]),
        (["reinforce"], ["--rollout.prompts-per-step", "64", "--rollout.group-size", "1"]),
        (["grpo", "bf16"], []),
        (["dr_grpo"], ["--update.minibatches", "2", "--algorithm.keep", "mixed_outcomes"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_it_learns_to_answer_in_the_kind_of_the_question(lightrft, tmp_path, layers, flags):
    lightrft("train", "tiny", *layers, *PLAIN, *FORTY_STEPS, "--run", "run", *flags)
    assert_learnt(tmp_path / "run")


def test_adapters_learn_it_too(lightrft, tmp_path):
    """On a model whose frozen head is sharp enough to prefer anything at all."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    save_model(model, tiny_processor(), tmp_path / "model")
    lightrft("train", "tiny", "grpo", "lora", *PLAIN, *FORTY_STEPS, "--model", "./model", "--run", "run")
    assert_learnt(tmp_path / "run")


def assert_learnt(run):
    score = summary(run)["evaluation"]
    assert score["before"] < 0.2
    assert score["after"] > score["before"] + 0.3
    taken = steps(run)
    assert max(row["mismatch/mean_abs"] for row in taken) < 0.01, (
        "the engine samples from the weights being trained"
    )
    rewards = [row["reward/mean"] for row in taken]
    assert sum(rewards[-5:]) > 1.4 * sum(rewards[:5])


def test_with_learning_rate_zero_nothing_changes_and_the_engine_goes_on_agreeing(lightrft, tmp_path):
    """A difference between engine and trainer that grows although nothing is learnt would be a bug."""
    flags = ["--optimizer.learning-rate", "0", "--steps", "4", "--optimizer.weight-decay", "0"]
    lightrft("train", "tiny", *PLAIN, "--run", "run", *flags)
    score = summary(tmp_path / "run")["evaluation"]
    assert score["before"] == score["after"]
    assert all(row["mismatch/max"] < 1e-5 for row in steps(tmp_path / "run"))


@pytest.fixture(scope="module")
def teacher(server, tmp_path_factory):
    """The folder of a model that has learnt the task."""
    folder = tmp_path_factory.mktemp("teacher")
    Lightrft(server, folder)(
        "train", "tiny", "dr_grpo", *PLAIN, *FORTY_STEPS, "--steps", "60", "--run", "run"
    )
    return folder / "run" / "model"


@pytest.mark.parametrize("enters", ["advantage", "loss"])
def test_from_a_teacher_alone_it_learns_what_the_teacher_knows(lightrft, tmp_path, teacher, enters):
    """No reward is learnt from: the advantage is the teacher's alone, or that of rewards scaled to 0."""
    base = ["--algorithm.advantage", "group_mean", "--rewards.scale", "tiny", "0"]
    base = [] if enters == "advantage" else base
    flags = ["--teacher.path", teacher, "--algorithm.teacher-in", enters]
    lightrft("train", "tiny", "distil", *PLAIN, *FORTY_STEPS, *flags, *base, "--run", "run")
    assert_learnt(tmp_path / "run")
    gap = [row["teacher_kl"] for row in steps(tmp_path / "run")]
    assert sum(gap[-3:]) / 3 < 0.2 * gap[0]


def test_a_cost_stays_below_its_limit_while_the_reward_rises(lightrft, tmp_path):
    """Left alone the answers stay as long as they may be."""
    (tmp_path / "costs.py").write_text("def long(answer, num_tokens):\n    return num_tokens / 8\n")
    constraint = ["--constraint.cost", "costs.py:long", "--constraint.limit", "0.5"]
    rate = ["--constraint.multiplier", "0.7", "--constraint.learning-rate", "0.02", "--steps", "100"]
    lightrft("train", "tiny", "dr_grpo", *PLAIN, *FORTY_STEPS, *constraint, *rate, "--run", "run")
    taken = steps(tmp_path / "run")
    assert taken[0]["reward/long"] > 0.9
    assert sum(row["reward/long"] for row in taken[-20:]) / 20 < 0.5
    first, last = (sum(row["reward/same_kind"] for row in part) / 20 for part in (taken[:20], taken[-20:]))
    assert last > 2.5 * first
