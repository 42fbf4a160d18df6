"""Two sets of weights: those that learn and sample, and the average that is measured, saved and exported. Back to the bit."""

import copy

import pytest
import torch
from torch import nn

from lightrft.config import CheckpointConfig, ModelConfig, OptimizerConfig
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.in_memory import InMemory, restore, snapshot
from lightrft.strategy.learned import learned
from lightrft.strategy.load_weights import reader
from lightrft.strategy.memory import MemoryPlan
from lightrft.strategy.schedule_free import shown
from lightrft.strategy.single import SingleTrainable
from lightrft.trainer.sampler import Sampler

OPTIONS = {"name": "schedule_free", "learning_rate": 0.05, "weight_decay": 0.1}


class Small(nn.Module):
    """A layer, and a weight that is a single number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.scale * torch.tanh(self.layer(x))


def learner(dtype=torch.float32, **options):
    return SingleTrainable(Small().to(dtype), OptimizerConfig(**{**OPTIONS, **options}), 10)


def learn(model, steps):
    for _ in range(steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(model.version))
        model.backward((model.module(x.to(next(model.module.parameters()))).float() - 1).square().mean())
        assert model.step(model.gradient_norm())


def weights(model):
    return {name: p.detach().clone() for name, p in model.module.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_looking_at_the_average_after_each_update_changes_no_bit(dtype):
    looked, plain = learner(dtype), learner(dtype)
    for _ in range(4):
        learn(looked, 1)
        learn(plain, 1)
        y = weights(looked)
        with looked.averaged():
            assert looked.is_averaged
            if looked.version > 1:
                assert not same(weights(looked), y)
        assert not looked.is_averaged
        assert same(weights(looked), y)
    one, other = snapshot(looked), snapshot(plain)
    assert one["numbers"] == other["numbers"]
    assert same(one["tensors"], other["tensors"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_is_what_computes_what_is_saved_and_what_a_checkpoint_shows(dtype, tmp_path):
    model = learner(dtype)
    learn(model, 3)
    saved = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), World())
    saved.save(3, {"numbers": model.scalar_state()}, {"model": model.tensor_state()})
    with model.averaged():
        exact, computes = learned(model, World()), weights(model)
        exact = {name: tensor.clone() for name, tensor in exact.items()}
    assert all(tensor.dtype is torch.float32 for tensor in exact.values())
    assert same(computes, {name: tensor.to(dtype) for name, tensor in exact.items()})
    state = saved.load(saved.latest())
    found = {f"weights/{name}": torch.empty_like(tensor) for name, tensor in exact.items()}
    shown(state["models"]["model"], state["numbers"]).into(found)
    assert same(found, {f"weights/{name}": tensor for name, tensor in exact.items()})
    assert not same(found, {name: t for name, t in model.tensor_state().items() if name in found})


def test_what_fails_inside_leaves_the_weights_that_learn():
    model = learner()
    learn(model, 2)
    y = weights(model)
    with pytest.raises(RuntimeError, match="no room"), model.averaged():
        raise RuntimeError("no room")
    assert same(weights(model), y)
    with model.averaged(), pytest.raises(AssertionError, match="the average does not learn"):
        model.step(1.0)


def test_of_other_optimizers_nothing_changes_inside_and_a_checkpoint_shows_what_it_holds():
    model = learner(name="adamw")
    learn(model, 2)
    y = weights(model)
    with model.averaged():
        assert not model.is_averaged
        assert same(weights(model), y)
    held = InMemory(model.tensor_state())
    assert shown(held, model.scalar_state()) is held


def test_a_resume_with_another_share_of_the_average_is_refused():
    saved = copy.deepcopy(snapshot(learner()))
    told = r"optimizer.betas=\[0.8, 0.999\]: the average of the checkpoint was kept with 0.9, .* Set optimizer.betas=\[0.9, 0.999\]"
    with pytest.raises(ValueError, match=told):
        restore(learner(betas=[0.8, 0.999]), saved)
    restore(learner(betas=[0.9, 0.99]), saved)


class Listening:
    """An engine with weights of its own, for what it is given."""

    weight_version = -1

    def __init__(self):
        self.given = []

    def load_weights(self, weights):
        self.given.append({name: tensor.clone() for name, tensor in weights})

    def parts(self):
        return {}


def test_an_engine_samples_from_the_weights_that_learn_and_is_measured_with_the_average():
    source = Source(ModelConfig(path="random:llama"))
    model, engine = SingleTrainable(source.full(), OptimizerConfig(**OPTIONS), 10), Listening()
    sampler = Sampler(engine, model, MemoryPlan(lambda: 0), World())
    for token in (3, 4):
        logits = model.module(torch.tensor([[token, 5, 6]])).logits
        model.backward(logits.float().log_softmax(-1)[..., 7].sum())
        model.step(model.gradient_norm())
    y = {name: tensor.clone() for name, tensor in model.weights()}
    sampler(lambda: None)
    sampler(lambda: None)  # has them already
    with model.averaged():
        x = {name: tensor.clone() for name, tensor in model.weights()}
        sampler(lambda: None)
    sampler(lambda: None)
    assert [same(given, y) for given in engine.given] == [True, False, True]
    assert same(engine.given[1], x)
    module = source.empty()
    read = reader(module, source, shown(InMemory(model.tensor_state()), model.scalar_state()))
    name, parameter = next(iter(module.named_parameters()))
    assert torch.equal(read(parameter, torch.float32), x[name])
