"""Optimizers and schedules by name: what they do, what a checkpoint keeps of them, what is refused."""

import copy
import math
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import get_scheduler

from lightrft.config import CheckpointConfig, OptimizerConfig
from lightrft.config.training import OPTIMIZERS as NAMED
from lightrft.config.training import CriticOptimizerConfig
from lightrft.parallel.world import World
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.in_memory import restore, snapshot
from lightrft.strategy.optimizers import (
    OPTIMIZERS,
    STATE_BYTES,
    build_optimizer,
    check_pieces,
    is_hidden_matrix,
    is_unknown,
    need_adamw,
    state_bytes,
)
from lightrft.strategy.schedules import SCHEDULES, schedule
from lightrft.strategy.single import SingleTrainable

OWN = """
import torch

class Lion(torch.optim.Optimizer):
    '''Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2, with the mean of its steps beside it.'''

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(momentum=torch.zeros_like(p), seen=0.0)
                update = torch.sign(state["momentum"] * group["beta"] + p.grad * (1 - group["beta"]))
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
                state["momentum"].lerp_(p.grad, 0.01)
                state["seen"] += 0.5
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "lion.py").write_text(OWN)
    return f"{tmp_path / 'lion.py'}:Lion"


class Small(nn.Module):
    """Two numbered layers between an embedding and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 4)])
        self.head = nn.Linear(4, 7, bias=False)

    def forward(self, tokens):
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return self.head(hidden)


def learner(dtype=torch.float32, **options):
    options = {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "max_grad_norm": 0, **options}
    if options["name"] == "adamw_8bit":  # which leaves small weights to float32
        options = {"options": {"min_8bit_size": 1}, **options}
    if options["name"] == "schedule_free":
        options.pop("schedule", None)
    return SingleTrainable(Small().to(dtype), OptimizerConfig(**options), 10)


def learn(model, steps):
    loss = torch.zeros(())
    for step in range(steps):
        tokens = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(step + model.version))
        logits = model.module(tokens).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), (3 * tokens + 1).remainder(7).flatten())
        model.backward(loss)
        assert model.step(model.gradient_norm())
    return float(loss.detach())


def test_the_names_of_the_settings_are_those_of_the_table():
    assert tuple(OPTIMIZERS) == tuple(STATE_BYTES) == NAMED


needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install bitsandbytes"
)
EIGHT_BITS = pytest.param("adamw_8bit", marks=needs_bitsandbytes)
NAMES = ["adamw", EIGHT_BITS, "muon", "adafactor", "schedule_free", "own"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("done", [0, 3])
def test_a_state_is_taken_back_bit_for_bit(own, name, done, dtype):
    name = own if name == "own" else name
    whole = learner(dtype, name=name, schedule="linear")
    learn(whole, done)
    saved = copy.deepcopy(snapshot(whole))
    learn(whole, 3)
    resumed = learner(dtype, name=name, schedule="linear")
    restore(resumed, saved)
    learn(resumed, 3)
    again, expected = snapshot(resumed), snapshot(whole)
    assert again["numbers"] == expected["numbers"]
    assert again["tensors"].keys() == expected["tensors"].keys()
    for key, tensor in expected["tensors"].items():
        assert torch.equal(again["tensors"][key], tensor), key
    if name == "adamw_8bit":
        assert expected["tensors"]["state1/layers.0.weight"].dtype == torch.uint8


@pytest.mark.parametrize("name", NAMES)
def test_a_state_goes_through_a_checkpoint_bit_for_bit(own, name, tmp_path):
    name = own if name == "own" else name
    saved = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), World())
    whole, resumed = learner(name=name), learner(name=name)
    learn(whole, 3)
    saved.save(3, {"numbers": whole.scalar_state()}, {"model": whole.tensor_state()})
    state = saved.load(saved.latest())
    resumed.load(state["models"]["model"], state["numbers"])
    for model in (whole, resumed):
        learn(model, 2)
    for (key, expected), found in zip(
        snapshot(whole)["tensors"].items(), snapshot(resumed)["tensors"].values(), strict=True
    ):
        assert torch.equal(found, expected), key


@pytest.mark.parametrize("name", ["adamw", "schedule_free"])
def test_a_weight_without_a_gradient_in_some_steps_keeps_its_own_count(name):
    def seldom(model):
        learn(model, 1)
        loss = model.module.head(torch.ones(4)).sum()  # no layer takes part
        model.backward(loss)
        assert model.step(model.gradient_norm())

    whole = learner(name=name)
    seldom(whole)
    saved = copy.deepcopy(snapshot(whole))
    assert saved["numbers"]["numbers"]["step"].keys() >= {"layers.0.weight"}
    resumed = learner(name=name)
    restore(resumed, saved)
    for model in (whole, resumed):
        learn(model, 2)
    for one, other in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_looking_at_the_state_of_a_new_optimizer_changes_nothing(own, name):
    name = own if name == "own" else name
    looked, plain = learner(name=name), learner(name=name)
    before = {n: p.detach().clone() for n, p in looked.module.named_parameters()}
    assert snapshot(looked)["numbers"]["step"] == 0
    assert all(torch.equal(before[n], p) for n, p in looked.module.named_parameters())
    learn(looked, 2)
    learn(plain, 2)
    for one, other in zip(looked.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(own, name):
    model = learner(name=own if name == "own" else name, learning_rate=0.02)
    assert learn(model, 60) < 0.8 * learn(learner(), 1)


def test_muon_takes_orthogonal_steps_of_the_size_of_adamws():
    model = learner(name="muon", weight_decay=0.0)
    before = {n: p.detach().clone() for n, p in model.module.named_parameters()}
    learn(model, 1)
    moved = {n: (p.detach() - before[n]) / 0.01 for n, p in model.module.named_parameters()}
    wide = moved["layers.0.weight"]  # (6, 4): 0.2 * sqrt(6) times a matrix whose singular values are about 1
    sizes = torch.linalg.svdvals(wide) / (0.2 * math.sqrt(6))
    assert ((sizes > 0.6) & (sizes < 1.3)).all()
    head = moved["head.weight"]  # AdamW's first step: the sign of the gradient
    assert_close(head.abs(), torch.ones_like(head), atol=1e-3, rtol=0)


def test_muon_leaves_embeddings_and_heads_to_adamw():
    matrix, vector = torch.zeros(2, 2), torch.zeros(2)
    assert is_hidden_matrix("model.layers.0.mlp.up_proj.weight", matrix)
    assert not is_hidden_matrix("model.embed_tokens.weight", matrix)
    assert not is_hidden_matrix("lm_head.weight", matrix)
    assert not is_hidden_matrix("model.layers.0.norm.weight", vector)
    keys = snapshot(learner(name="muon"))["tensors"]
    assert "momentum_buffer/layers.0.weight" in keys
    assert "exp_avg/head.weight" in keys
    assert "exp_avg/layers.0.weight" not in keys


HF = {
    "constant": ({}, {}),
    "linear": ({}, {}),
    "cosine": ({}, {}),
    "cosine_with_restarts": ({"cycles": 3}, {"num_cycles": 3}),
    "polynomial": ({"power": 2.0}, {"power": 2.0, "lr_end": 0.0}),
    "inverse_sqrt": ({}, {"timescale": 10_000}),
    "warmup_stable_decay": ({"decay_steps": 7}, {"num_decay_steps": 7}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_that_of_transformers_by_this_name(name):
    ours, theirs = HF[name]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = get_scheduler(
        name, optimizer, num_warmup_steps=0, num_training_steps=20, scheduler_specific_kwargs=theirs or None
    )
    rate = schedule(OptimizerConfig(schedule=name, **ours), 20)
    for update in range(21):
        assert rate(update) == pytest.approx(peer.get_last_lr()[0], abs=1e-12), update
        optimizer.step()
        peer.step()


def test_a_schedule_falls_to_the_final_fraction_after_its_warm_up():
    rate = schedule(OptimizerConfig(schedule="polynomial", power=2.0, warmup_steps=2, final_fraction=0.2), 6)
    assert [rate(u) for u in range(7)] == pytest.approx([0.5, 1.0, 1.0, 0.65, 0.4, 0.25, 0.2])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cycles": 2}, "optimizer.cycles=2 has no effect with optimizer.schedule=constant"),
        ({"schedule": "cosine", "power": 2.0}, "optimizer.power=2.0 has no effect"),
        ({"schedule": "warmup_stable_decay"}, "optimizer.decay_steps=0: warmup_stable_decay needs an end"),
        (
            {"name": "adafactor", "eps": 1e-6},
            "optimizer.eps=1e-06 has no effect with optimizer.name=adafactor",
        ),
        ({"name": "a.b:C", "betas": [0.8, 0.9]}, "optimizer.betas=[0.8, 0.9] has no effect"),
        (
            {"name": "schedule_free", "schedule": "cosine"},
            "optimizer.schedule=cosine with optimizer.name=schedule_free",
        ),
        ({"name": "schedule_free", "betas": [0.0, 0.9]}, "Set optimizer.betas=[0.9, 0.9]"),
        ({"name": "schedule_free", "options": {"r": -1.0}}, "optimizer.options.r=-1: a power"),
    ],
)
def test_settings_without_effect_are_refused(options, told):
    with pytest.raises(ValueError, match="optimizer") as error:
        OptimizerConfig(**options)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "adamv"}, "optimizer.name=adamv: there is no such optimizer. Take one of adamw,"),
        ({"options": {"momentum": 0.9}}, "optimizer.options.momentum: adamw has no such option; it has none"),
        ({"name": "muon", "options": {"lr": 1.0}}, "optimizer.options.lr: muon has no such option"),
    ],
)
def test_unknown_names_are_refused(options, told):
    with pytest.raises(ValueError, match="optimizer") as error:
        learner(**options)
    assert told in str(error.value)


def test_options_reach_the_optimizer():
    assert learner(name="muon", options={"momentum": 0.5}).optimizer.param_groups[0]["momentum"] == 0.5


def test_a_state_of_another_optimizer_is_refused_by_name():
    saved = copy.deepcopy(snapshot(learner(name="adamw")))
    with pytest.raises(ValueError, match="optimizer.name=muon: the checkpoint holds the state of adamw"):
        restore(learner(name="muon"), saved)


def test_a_backend_with_an_adamw_of_its_own_refuses_others():
    with pytest.raises(ValueError, match="critic.optimizer.name=muon with strategy.backend=zero2"):
        need_adamw(CriticOptimizerConfig(name="muon"), "zero2")
    need_adamw(OptimizerConfig(), "zero2")
    with pytest.raises(ValueError, match="optimizer.name=adafactor with strategy.backend=fsdp: its library"):
        check_pieces(OptimizerConfig(name="adafactor"), "fsdp")
    check_pieces(OptimizerConfig(name="muon"), "fsdp")
    check_pieces(OptimizerConfig(name="schedule_free"), "fsdp")
    with pytest.raises(ValueError, match="optimizer.name=schedule_free with strategy.backend=zero1"):
        need_adamw(OptimizerConfig(name="schedule_free"), "zero1")


class TwoSetsOfWeights(torch.optim.SGD):
    """As schedule-free optimizers are: weights for training, and others for all else."""

    def train(self): ...

    def eval(self): ...


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "schedulefree_sgd"])
def test_another_name_of_the_schedule_free_optimizer_is_answered_with_ours(name):
    with pytest.raises(ValueError, match=f"optimizer.name={name}: .* Did you mean schedule_free?"):
        OptimizerConfig(name=name)


def test_an_optimizer_with_other_weights_for_training_is_refused_whatever_it_is_called():
    with pytest.raises(
        ValueError, match="TwoSetsOfWeights: an optimizer with train.. and eval.. .* Set name=schedule_free"
    ):
        learner(name=f"{__name__}:TwoSetsOfWeights")


def test_muon_without_a_matrix_to_learn_says_so():
    with pytest.raises(ValueError, match="no matrix of a layer learns"):
        SingleTrainable(nn.Linear(2, 2), OptimizerConfig(name="muon"), 1)


def weights_of_all_shapes():
    """Weights with gradients: an embedding, a matrix of a layer, a stack of matrices, a kernel of four axes, a vector."""
    shapes = {
        "embed.weight": (70, 64),
        "layers.0.up.weight": (80, 64),
        "layers.0.experts": (3, 8, 5),
        "conv.weight": (6, 5, 3, 2),
        "layers.0.norm.weight": (64,),
    }
    found = [(name, nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]
    for _, weight in found:
        weight.grad = torch.randn_like(weight)
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {}),
        ("muon", {}),
        ("adafactor", {}),
        ("schedule_free", {}),
        ("adamw_8bit", {}),
        ("adamw_8bit", {"min_8bit_size": 100}),
    ],
)
def test_the_bytes_of_a_state_are_those_after_a_real_step(name, options):
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    config, named = OptimizerConfig(name=name, options=options), weights_of_all_shapes()
    optimizer = build_optimizer(named, config)
    optimizer.step()
    kept = [(kind, t) for known in optimizer.state.values() for kind, t in known.items() if kind != "step"]
    tensors = [(kind, t) for kind, t in kept if isinstance(t, torch.Tensor)]
    real = sum(
        t.nbytes for kind, t in tensors if not kind.startswith("qmap")
    )  # tables that all weights share
    on_meta = [(n, p.detach().to("meta")) for n, p in named]
    assert state_bytes(on_meta, config) == real > 0


def test_the_state_of_ones_own_optimizer_is_counted_as_adamws(own):
    config = OptimizerConfig(name=own)
    assert is_unknown(config)
    assert not is_unknown(OptimizerConfig(name="muon"))
    assert state_bytes([("w", torch.zeros(3, 5)), ("b", torch.zeros(7))], config) == 8 * (15 + 7)
