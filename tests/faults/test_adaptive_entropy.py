"""The entropy bonus that moves with the run, over a resume."""

import torch

from tests.faults.small_runs import begin, go_on

STEERED = {"algorithm.entropy_target": 1e9, "algorithm.entropy_step": 0.1}


def coefficients(trainer):
    return {step: told.get("entropy_coefficient") for step, told in trainer.told.items()}


def test_a_resumed_run_goes_on_with_the_bonus_it_had(tmp_path):
    whole = begin(tmp_path / "whole", 4, STEERED)
    assert list(coefficients(whole).values()) == [0.0, 0.1, 0.2, 0.30000000000000004]
    assert coefficients(begin(tmp_path / "cut", 2, STEERED)) == {1: 0.0, 2: 0.1}
    later = go_on(tmp_path / "cut", 4, STEERED)
    assert coefficients(later) == {3: 0.2, 4: 0.30000000000000004}
    expected = dict(whole.learner.actor.weights())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in later.learner.actor.weights())


def test_without_a_target_the_bonus_is_that_of_the_settings_again(tmp_path):
    begin(tmp_path, 2, STEERED)
    later = go_on(tmp_path, 3, {"algorithm.entropy_coefficient": 0.01})
    assert coefficients(later) == {3: None}
    assert later.learner.algorithm.config.entropy_coefficient == 0.01


def test_entropy_that_is_held_stays_higher(tmp_path):
    free = begin(tmp_path / "free", 6, {})
    held = begin(tmp_path / "held", 6, {"algorithm.entropy_target": 10.0, "algorithm.entropy_step": 0.5})
    assert held.told[6]["entropy"] > free.told[6]["entropy"]
