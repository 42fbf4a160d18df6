"""Runs with the schedule-free optimizer: measured more often or stopped in between they learn the same, and what is measured is what is saved."""

from __future__ import annotations

import json

from safetensors.torch import load_file

from tests.e2e.runs import PLAIN, answers, model_bytes, rows, steps

SCHEDULE_FREE = [
    "--optimizer.name", "schedule_free", "--optimizer.learning-rate", "1e-2", "--optimizer.warmup-steps", "2",
]  # fmt: skip
RL = [
    "train", "tiny", "grpo", *PLAIN, *SCHEDULE_FREE, "--algorithm.reference-update-steps", "2", "--update.num-minibatches", "2",
    "--rollout.prompts-per-step", "2", "--evaluate.limit", "8",
]  # fmt: skip
SFT = [
    "sft", "sft_tiny", "lora", *SCHEDULE_FREE, "--log.tensorboard=false", "--log.curves=false", "--log.progress=false",
    "--evaluate.limit", "12",
]  # fmt: skip


def tensors(folder):
    return {key: t for file in folder.glob("*.safetensors") for key, t in load_file(file).items()}


def same(one, other):
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def often_and_seldom(lightrft, place, flags):
    """One run that is measured after each of its four steps, and one that is stopped after two, resumed and never measured."""
    command = flags[0]
    lightrft(*flags, "--steps", "4", "--evaluate.every-steps", "1", "--run", "often")
    lightrft(*flags, "--steps", "2", "--evaluate.before-and-after=false", "--run", "seldom")
    lightrft(command, "--resume", "seldom", "--steps", "4")
    often, seldom = place / "often", place / "seldom"
    learned = [tensors(run / "checkpoints" / "step-000004" / "tensors") for run in (often, seldom)]
    assert same(*learned)
    assert model_bytes(often) == model_bytes(seldom)
    return often, seldom, learned[0]


def test_a_policy_samples_from_the_weights_that_learn_and_its_average_is_measured_and_saved(
    lightrft, tmp_path
):
    often, seldom, learned = often_and_seldom(lightrft, tmp_path, RL)
    assert steps(often) == steps(seldom)
    assert all(row["mismatch/max"] < 1e-5 for row in steps(often)), "sampled from the weights that learn"
    assert len([row for row in rows(often) if "evaluation/mean" in row]) == 5
    y = {k.removeprefix("actor/weights/"): t for k, t in learned.items() if k.startswith("actor/weights/")}
    x = tensors(often / "model")
    assert not any(x[name].equal(y[name]) for name in x)
    lightrft("export", "seldom", "exported")
    assert same(tensors(tmp_path / "exported"), x)
    lightrft(
        "evaluate", "tiny", "--model", often / "model", "--evaluate.limit", "8", "--run", "again", *PLAIN
    )
    after = answers(often)["evaluation/after.jsonl"]
    again = (tmp_path / "again" / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    assert [row["response"] for row in after] == [json.loads(line)["response"] for line in again]


def test_adapters_that_learn_from_given_responses_are_averaged(lightrft, tmp_path):
    often, seldom, _ = often_and_seldom(lightrft, tmp_path, SFT)
    losses = [[row["nll"] for row in rows(run) if "nll" in row] for run in (often, seldom)]
    assert losses[0] == losses[1]
    measured = [row["held_out_nll/mean"] for row in rows(often) if "held_out_nll/mean" in row]
    assert len(measured) == 5
    assert measured[-1] < measured[0]
    lightrft("export", "seldom", "adapter", "--adapter")
    assert same(tensors(tmp_path / "adapter"), tensors(often / "adapter"))
