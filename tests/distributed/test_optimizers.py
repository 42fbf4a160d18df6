"""Optimizers other than AdamW over weights in pieces: the steps of one process, and a state that goes on bit for bit."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lightrft.config import CheckpointConfig
from lightrft.models.lora import full_weights
from lightrft.parallel.world import World
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.load_weights import reader
from lightrft.strategy.schedule_free import shown as what_it_shows
from tests.distributed.launch import together
from tests.distributed.test_strategies import ACTOR, OPTIONS, full, learn, policy_loss, strategy_of


def options(name):
    return replace(OPTIONS, name=name, **({"schedule": "constant"} if name == "schedule_free" else {}))


def model_of(backend, name):
    return strategy_of(backend).trainable(ACTOR, options(name), 6)


def measured(model):
    """What is evaluated and saved of a model: its weights, or their average."""
    before = full(model)
    with model.averaged():
        found = full(model)
    assert all(torch.equal(before[key], weight) for key, weight in full(model).items())
    return found


def steps(backend, name, run):
    """Weights after two steps, what is measured then, and weights after three; the state after two is saved."""
    torch.manual_seed(0)
    model = model_of(backend, name)
    learn(model, [0, 1], policy_loss, ACTOR)
    saved = Checkpoints(run / backend, CheckpointConfig(), World.current())
    saved.save(2, {"numbers": model.scalar_state()}, {"actor": model.tensor_state()})
    two = full(model)
    shown = measured(model)
    learn(model, [2], policy_loss, ACTOR)
    return two, shown, full(model)


def resumed(name, run):
    saved = Checkpoints(run / "fsdp", CheckpointConfig(), World.current())
    state = saved.load(saved.latest())
    model = model_of("fsdp", name)
    model.load(state["models"]["actor"], state["numbers"])
    learn(model, [2], policy_loss, ACTOR)
    return full(model)


@pytest.mark.extended
@pytest.mark.parametrize("name", ["adamw", "muon", "schedule_free"])
def test_pieces_learn_what_one_process_learns_and_go_on_bit_for_bit(tmp_path, name):
    _, averaged, alone = steps("single", name, tmp_path)
    (before, shown, found), _ = together(steps, 2, "fsdp", name, tmp_path)
    for key, weight in alone.items():
        # Muon iterates in bfloat16, where another order of sums is another last bit: a few percent of its steps.
        assert_close(
            found[key],
            weight,
            atol=3e-4 if name == "muon" else 2e-6,
            rtol=0,
            msg=lambda told, key=key: f"{key}: {told}",
        )
    assert any(not torch.equal(before[key], found[key]) for key in found)
    assert_close(shown, averaged, atol=3e-4 if name == "muon" else 2e-6, rtol=0)
    assert all(torch.equal(shown[key], before[key]) for key in shown) == (name != "schedule_free")
    module, written = ACTOR.empty(), Checkpoints(tmp_path / "fsdp", CheckpointConfig(), World())
    state = written.load(written.latest())
    read = reader(module, ACTOR, what_it_shows(state["models"]["actor"], state["numbers"]))
    exported = {key: weight.clone() for key, weight in full_weights(module, read, torch.float32)}
    assert all(torch.equal(exported[key], weight) for key, weight in shown.items())
    again, _ = together(resumed, 2, name, tmp_path)
    for key, weight in found.items():
        assert torch.equal(again[key], weight), key
