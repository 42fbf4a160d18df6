"""Runs whose loss compares the responses of a group, where that meets what could divide or forget a group."""

from __future__ import annotations

import pytest
import torch

from lightrft.runs.layout import RunFolder
from tests.distributed.launch import together
from tests.faults.small_runs import begin, go_on

SMALL = {
    "algorithm.advantage": "none",
    "algorithm.loss": "dpo",
    "algorithm.kl_coefficient": 0.0,
    "algorithm.response_filter": "all",
    "rollout.group_size": 4,
}
LATE = {
    "replay.groups_per_step": 2,
    "replay.max_age": 2,
    "rollout.max_tokens_per_step": 3,
    "update.num_minibatches": 2,
    "update.epochs": 2,
}

ROUNDING = 2e-4
"""A hundredth of what Adam moves a weight in a step here; it makes much of rounding where a gradient is nearly 0."""


def weights(trainer):
    return {name: tensor.clone() for name, tensor in trainer.learner.actor.weights()}


def ended(call, *asked):
    """(weights, what each step reported, sizes of the groups of each step)."""
    trainer = call(*asked)
    sizes = {step: sorted(t.group for t in seen if t.use == "trained") for step, seen in trainer.seen.items()}
    return weights(trainer), trainer.told, sizes


def apart(found, other):
    return max(float((found[name] - other[name]).abs().max()) for name in found)


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_micro_batches_and_shared_prompts_change_nothing(loss, tmp_path):
    first, told, _ = ended(begin, tmp_path / "one", 2, SMALL | {"algorithm.loss": loss})
    small = {"update.tokens_per_micro_batch": 16, "update.share_prompts": False, "algorithm.loss": loss}
    other, again, _ = ended(begin, tmp_path / "many", 2, SMALL | small)
    assert apart(first, other) < ROUNDING
    for step in (1, 2):
        assert again[step]["pairs/accuracy"] == pytest.approx(told[step]["pairs/accuracy"], abs=1e-6)


def test_the_first_step_of_dpo_is_at_the_reference(tmp_path):
    _, told, _ = ended(begin, tmp_path, 1, SMALL | {"algorithm.group_filter": "mixed_outcomes"})
    assert told[1]["loss"] == pytest.approx(0.6931472, abs=1e-6)
    assert told[1]["pairs/margin"] == pytest.approx(0.0, abs=1e-5)


def test_a_resumed_run_learns_what_an_uninterrupted_one_does(tmp_path):
    """With replayed groups, responses that wait for the next step, and several updates of whole groups."""
    whole, _, sizes = ended(begin, tmp_path / "whole", 4, SMALL | LATE)
    begin(tmp_path / "cut", 2, SMALL | LATE)
    again, _, later = ended(go_on, tmp_path / "cut", 4, SMALL | LATE)
    assert RunFolder(tmp_path / "cut").has_steps
    assert {step: sizes[step] for step in later} == later
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_two_processes_learn_what_one_does(tmp_path):
    settings = SMALL | {"algorithm.response_filter": "best_worst", "rollout.prompts_per_step": 4}
    alone, told, _ = ended(begin, tmp_path / "one", 1, settings)
    shared = settings | {"strategy.backend": "fsdp", "strategy.device": "cpu"}
    (both, again, _), _ = together(ended, 2, begin, tmp_path / "two", 1, shared)
    assert apart(alone, both) < ROUNDING
    assert again[1]["loss"] == pytest.approx(told[1]["loss"], abs=1e-6)
