"""Values of prompts (A*-PO) are of the model that the run began with, whenever it was stopped, and whatever a resume changes."""

from __future__ import annotations

import contextlib
import shutil
import time

import pytest
import torch

from lightrft.algorithms.optimal_values import value_of
from lightrft.build.rl import build_run
from lightrft.trainer.optimal_values import OptimalValues
from lightrft.utils.interrupt import Stopped
from tests.distributed.launch import together
from tests.faults.small_runs import begin, go_on, with_settings

VALUES = {
    "algorithm.advantage": "optimal_value",
    "algorithm.loss": "advantage_regression",
    "algorithm.kl_coefficient": 0.0,
    "algorithm.value_samples": 3,
    "algorithm.options": {"beta": 0.1},
    "rollout.group_size": 1,
    "rollout.prompts_per_step": 4,
    "rollout.max_tokens": 4,
    "tasks.train_limit": 10,
}


def take_all(folder, steps):
    """A run that saves where it is stopped."""
    with contextlib.ExitStack() as stack:
        settings = with_settings({**VALUES, "steps": steps})
        build_run(settings, folder, stack, started=time.perf_counter()).train()


def weights(trainer):
    return {name: p.clone() for name, p in trainer.actor.weights()}


def assert_same(found, expected):
    there, here = weights(expected), weights(found)
    assert all(p.equal(here[name]) for name, p in there.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, begin(folder, 3, VALUES)


def test_every_prompt_is_measured_once_before_the_first_step_and_its_responses_know_its_value(whole):
    _, trainer = whole
    values = trainer.parts["values"]
    (measured,) = values.rewards.values()
    assert len(measured) == 10
    assert all(len(rewards) == 3 for rewards in measured.values())
    assert len({tuple(rewards) for rewards in measured.values()}) > 1
    for seen in trainer.seen.values():
        for t in seen:
            value = value_of(measured[t.prompt.id], 0.5)
            assert t.baseline == value
            assert t.columns["advantages"].tolist() == pytest.approx([t.reward - value] * len(t), abs=1e-6)
    assert "kl" in trainer.told[3], "the reference is there"


def test_stopped_while_it_measures_a_run_goes_on_to_the_same_weights(whole, tmp_path, monkeypatch):
    _, expected = whole
    measured = OptimalValues._measured
    places = []

    def stopped_in_the_second_part(self, start, some):
        places.append(start)
        if len(places) == 2:
            raise Stopped("SIGTERM")
        return measured(self, start, some)

    monkeypatch.setattr(OptimalValues, "_measured", stopped_in_the_second_part)
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        take_all(run, 3)
    found = go_on(run, 3, VALUES)
    assert places == [0, 4, 4, 8], "what was measured before is not asked again"
    assert_same(found, expected)


def test_a_resume_measures_nothing_again_and_takes_another_beta(whole, tmp_path, monkeypatch):
    _, expected = whole
    begin(tmp_path / "run", 1, VALUES)
    monkeypatch.setattr(OptimalValues, "_measured", None)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    assert_same(go_on(tmp_path / "run", 3, VALUES), expected)
    other = go_on(tmp_path / "other", 2, {**VALUES, "algorithm.value_beta": 1e-6})
    (measured,) = other.parts["values"].rewards.values()
    assert all(t.baseline == pytest.approx(max(measured[t.prompt.id]), abs=1e-4) for t in other.seen[2])


STEADY = {**VALUES, "optimizer.eps": 1e-4}
"""AdamW divides by the gradient, so that rounding in one of nearly 0 would become a whole step."""


def on_a_rank(folder):
    """What one of several ranks knows after a step."""
    trainer = begin(folder, 1, {**STEADY, "strategy.backend": "fsdp", "strategy.device": "cpu"})
    return trainer.parts["values"].rewards, weights(trainer)


def test_two_ranks_share_the_prompts_out_and_know_what_one_process_knows(whole, tmp_path):
    _, expected = whole
    one = begin(tmp_path / "one", 1, STEADY)
    for rewards, found in together(on_a_rank, 2, tmp_path / "two", seconds=240):
        assert rewards == expected.parts["values"].rewards
        for name, p in weights(one).items():
            torch.testing.assert_close(found[name], p, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "change", "told"),
    [
        (
            {"algorithm.advantage": "reinforce", "rollout.group_size": 1},
            VALUES,
            "the checkpoint of step 1 holds none",
        ),
        (
            VALUES,
            {**VALUES, "algorithm.value_samples": 5},
            "Set algorithm.value_samples=3, or start a new run",
        ),
    ],
)
def test_a_policy_that_has_learned_is_not_taken_for_the_reference(tmp_path, before, change, told):
    begin(tmp_path, 1, before)
    with pytest.raises(ValueError, match=told):
        go_on(tmp_path, 2, change)
