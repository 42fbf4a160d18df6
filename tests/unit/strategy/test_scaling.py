"""Loss scaling of float16: torch's own rules, gradients that neither vanish nor change by it, and exact resumes."""

import math
import random

import pytest
import torch
from torch import nn

from lightrft.config import OptimizerConfig
from lightrft.strategy.in_memory import restore, snapshot
from lightrft.strategy.scaling import LossScale, loss_scale
from lightrft.strategy.single import SingleTrainable
from tests.faults.small_runs import begin, go_on


def test_the_scale_moves_as_that_of_torch():
    draw, weight = random.Random(0), nn.Parameter(torch.zeros(1))
    theirs = torch.amp.GradScaler("cpu", init_scale=65536.0)
    optimizer, ours = torch.optim.SGD([weight], lr=0.0), LossScale()
    # Long stretches without an overflow, so that the scale grows too.
    for number in range(6500):
        finite = number > 1500 or draw.random() > 0.02
        theirs.scale(weight.sum())
        weight.grad = torch.full((1,), 1.0 if finite else math.inf)
        theirs.step(optimizer)
        theirs.update()
        ours.follow(finite=finite)
        assert ours.value == theirs.get_scale()
    assert ours.value < 1, "it has fallen, and grown since"
    assert ours.good == theirs.state_dict()["_growth_tracker"]


def test_float16_alone_is_scaled():
    assert loss_scale(torch.float32) is None
    assert loss_scale(torch.bfloat16) is None
    assert loss_scale(torch.float16) == LossScale(65536.0, 0)


def trainable(scale=65536.0, **options):
    torch.manual_seed(0)
    module = nn.Linear(4, 3).half()
    made = SingleTrainable(module, OptimizerConfig(**{"learning_rate": 0.1, **options}), total_updates=10)
    made.scaling.value = scale
    return made


def learned(model, factor):
    model.backward((model.module(torch.ones(1, 4).half()).float() * factor).sum())
    norm = model.gradient_norm()
    return norm, model.step(norm), dict(model.tensor_state())


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_scaling_changes_no_gradient_that_float16_can_hold(clip):
    (norm, _, one), (other_norm, _, other) = (
        learned(trainable(s, max_grad_norm=clip), 1.0) for s in (1.0, 1024.0)
    )
    assert norm == other_norm == pytest.approx(math.sqrt(3 * 4 + 3))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_gradient_too_small_for_float16_is_learned_from_by_its_scale():
    """2^-26 is below the smallest number of float16, 2^-24."""
    assert learned(trainable(1.0), 2.0**-26)[0] == 0
    norm, made, state = learned(trainable(), 2.0**-26)
    assert made
    assert norm == pytest.approx(2.0**-26 * math.sqrt(15))
    assert torch.equal(state["exp_avg/bias"], torch.full((3,), 0.1 * 2.0**-26))


def test_an_overflow_leaves_the_update_out_and_halves_the_scale_until_that_cannot_be_why():
    model = trainable(4.0, max_bad_steps=2)
    before = {
        name: tensor.clone() for name, tensor in model.tensor_state().items() if name.startswith("weights/")
    }
    for scale in (4.0, 2.0):
        assert model.scaling.value == scale
        norm, made, _ = learned(model, 60000.0)
        assert (math.isfinite(norm), made) == (False, False)
    assert (model.version, model.scaling.value) == (0, 1.0)
    state = model.tensor_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert learned(model, 60000.0)[1], "at a scale of 1 it fits"
    assert not learned(model, 1e9)[1]
    with pytest.raises(FloatingPointError, match="2 optimizer steps in a row"):
        learned(model, 1e9)


def test_the_scale_is_part_of_a_checkpoint():
    model = trainable(8.0)
    learned(model, 1.0)
    saved = snapshot(model)
    other = trainable()
    restore(other, saved)
    assert other.scaling == model.scaling == LossScale(8.0, 1)


def test_a_run_in_float16_counts_overflows_and_goes_on_bit_for_bit(tmp_path):
    settings = {"model.dtype": "float16"}
    whole = begin(tmp_path / "whole", 3, settings)
    assert [row["loss_scale"] for row in whole.told.values()] == [65536.0] * 3
    begin(tmp_path / "cut", 2, settings)
    later = go_on(tmp_path / "cut", 3, settings)
    state, theirs = later.actor.tensor_state(), whole.actor.tensor_state()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.items())
    assert later.actor.scaling == whole.actor.scaling == LossScale(65536.0, 3)
    assert whole.told[1]["mismatch/mean_abs"] < 0.1 / 8
    assert next(later.actor.module.parameters()).dtype is torch.float16
    later.actor.scaling.value = 2.0**60
    metrics, _ = later.train_step(4)
    assert (metrics["loss_scale"], metrics["counts/loss_overflows"]) == (2.0**60, 1)
    assert not {"counts/skipped_updates", "grad_norm"} & metrics.keys(), "no alarm, and no capsule"
    assert not list((tmp_path / "cut").glob("capsules/*"))
    assert later.actor.scaling.value == 2.0**59
