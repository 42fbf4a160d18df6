"""Responses without advantage are left out of an update, which stays the same with and without them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.algorithm import build
from lightrft.algorithms.losses import LOSSES
from lightrft.algorithms.online_preference import ONLINE_LOSSES
from lightrft.config import AlgorithmConfig, ModelConfig, OptimizerConfig, UpdateConfig
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double, tiny_trajectories
from lightrft.trainer.batching import Batching
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.skipping import without_advantage, without_mask, worth_reading
from lightrft.trainer.survey import surveyed
from lightrft.utils.imports import resolve

MODEL = load_model(ModelConfig(path="random:qwen3")).double()
SHAPE = [(5, [4, 7, 2]), (3, [6, 1]), (9, [3, 5, 8]), (2, [4, 4])]
LED = [name for name, loss in LOSSES.items() if getattr(loss, "zero_without_advantage", False)]


def judged(shape, idle, seed=0):
    """Responses of which the groups numbered in `idle` have no advantage, and one has no token to learn from."""
    answers = tiny_trajectories(shape, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    names = sorted({t.group for t in answers})
    for t in answers:
        t.mask = [bool(x) for x in torch.rand(len(t), generator=draw) < 0.8]
        t.columns["old"] = -5.5 + 0.3 * torch.randn(len(t), generator=draw)
        t.columns["entropy"] = torch.rand(len(t), generator=draw)
        t.columns["advantages"] = torch.randn(len(t), generator=draw)
        if names.index(t.group) in idle:  # what it has outside the mask says nothing
            t.columns["advantages"] = t.columns["advantages"] * ~torch.tensor(t.mask, dtype=torch.bool)
    answers[0].mask = [False] * len(answers[0])
    return answers


def update(answers, algorithm, idle, *, average="sequence", **config):
    """The gradient of every weight (None: it has none), by name, and the metrics of one update."""
    model = SingleTrainable(MODEL, OptimizerConfig(learning_rate=0.0), total_updates=1)
    MODEL.zero_grad()
    found = {}

    def log_probs(batch):
        return logprobs(MODEL, batch, temperature=0.9, max_logits=10**9)

    def loss(batch):
        new = log_probs(batch)
        return algorithm.loss(new.values, batch, new.entropy)

    def keep(_index, _norm):
        for name, p in MODEL.named_parameters():
            found[name] = None if p.grad is None else p.grad.clone()

    batching = Batching(UpdateConfig(**config), World(), torch.device("cpu"))
    updates = batching.updates(answers, seed=0)
    if algorithm.survey is not None:
        updates = surveyed(updates, lambda batch: log_probs(batch).values, algorithm.survey, batching)
    first = next(updates)  # surveys read the bits of float32 numbers
    with keep_double():
        steps = optimize(
            model,
            [first],
            loss,
            averaging=Averaging(average, 20),
            batching=batching,
            before_update=keep,
            idle=idle,
        )
        metrics = next(iter(steps))
    return found, metrics


def assert_same(found, expected):
    largest = max(float(g.abs().max()) for g in expected.values() if g is not None)
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        if gradient is not None:
            assert float((found[name] - gradient).abs().max()) <= 1e-12 * largest, name


@pytest.mark.parametrize("loss", LED)
def test_a_loss_that_is_led_by_the_advantage_has_the_same_gradient(loss):
    algorithm = build(AlgorithmConfig(loss=loss, mismatch_correction="truncate"), resolve)
    answers = judged(SHAPE, {1, 3})
    assert algorithm.zero_without_advantage
    expected, whole = update(answers, algorithm, None, tokens_per_micro_batch=24)
    found, metrics = update(answers, algorithm, without_advantage, tokens_per_micro_batch=24)
    assert any(g is not None and g.any() for g in expected.values())
    assert_same(found, expected)
    assert metrics["loss"] == pytest.approx(whole["loss"], rel=1e-9, abs=1e-15)
    assert metrics["update/skipped_responses"] == 5  # two of each idle group, and the masked one
    assert "update/skipped_responses" not in whole
    assert metrics["counts/tokens_read"] < whole["counts/tokens_read"]


NEED_MORE = ("advantage_regression", "diffusion_nft")
"""Losses that read columns which this module does not make, and move tokens without an advantage."""


def test_losses_that_fit_something_else_keep_every_response():
    assert not any(getattr(LOSSES[name], "zero_without_advantage", False) for name in NEED_MORE)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in (*LED, *NEED_MORE)])
def test_a_loss_that_moves_tokens_without_advantage_is_known(loss):
    """The other losses of the table do have a gradient there, so they rightly do not say otherwise."""
    algorithm = build(AlgorithmConfig(loss=loss), resolve)
    answers = judged(SHAPE, {0, 1, 2, 3})
    gradients, _ = update(answers, algorithm, None)
    assert any(g is not None and g.any() for g in gradients.values())
    assert not algorithm.zero_without_advantage


@pytest.mark.parametrize(
    "row",
    [
        {"kl_coefficient": 0.1},
        {"entropy_coefficient": 0.01},
        {"entropy_coefficient": 0.01, "entropy_target": 0.2},
        {"entropy_target": 0.2},
        {"kl_coefficient": 0.1, "kl_in": "reward", "kl_target": 0.1, "kl": "k1"},
        {"teacher_coefficient": 1.0, "teacher_in": "loss"},
    ],
)
def test_terms_beside_the_advantage_keep_every_response(row):
    assert not build(AlgorithmConfig(**row), resolve).zero_without_advantage


@pytest.mark.parametrize(
    "row",
    [
        {"kl_coefficient": 0.1, "kl_in": "reward", "kl": "k1"},
        {"teacher_coefficient": 1.0},
        {"off_policy_mask_limit": 0.1},
    ],
)
def test_terms_that_are_in_the_advantage_do_not(row):
    assert build(AlgorithmConfig(**row), resolve).zero_without_advantage


def test_losses_that_read_rewards_in_place_of_advantages_are_never_cut():
    for name in ONLINE_LOSSES:
        assert not build(AlgorithmConfig(loss=name, advantage="none"), resolve).zero_without_advantage


shapes = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), min_size=1, max_size=4)), min_size=1, max_size=5
)


@settings(max_examples=8)
@given(
    shapes,
    st.sets(st.integers(0, 4)),
    st.integers(1, 80),
    st.booleans(),
    st.sampled_from(["token", "sequence", "fixed"]),
    st.integers(0, 99),
)
def test_packing_and_average_do_not_matter(shape, idle, budget, share, average, seed):
    answers = judged(shape, idle, seed)
    random.Random(seed).shuffle(answers)
    algorithm = build(AlgorithmConfig(), resolve)
    config = {"average": average, "tokens_per_micro_batch": budget, "share_prompts": share}
    expected, whole = update(answers, algorithm, None, **config)
    found, metrics = update(answers, algorithm, without_advantage, **config)
    if all(g is None for g in expected.values()):  # no response has a token
        assert all(g is None for g in found.values())
        return
    assert_same(found, expected)
    assert metrics["loss"] == pytest.approx(whole["loss"], rel=1e-9, abs=1e-15)


def test_an_update_of_idle_responses_alone_has_a_gradient_of_zeros():
    """As it has with all of them, so that momentum and weight decay act; no gradient at all would stop them."""
    answers = judged(SHAPE, {0, 1, 2, 3})
    algorithm = build(AlgorithmConfig(), resolve)
    expected, _ = update(answers, algorithm, None)
    found, metrics = update(answers, algorithm, without_advantage)
    assert_same(found, expected)
    assert metrics["grad_norm"] == 0
    assert metrics["update/skipped_responses"] == len(answers) - 1


def test_with_other_terms_only_what_has_no_weight_is_left_out():
    algorithm = build(AlgorithmConfig(entropy_coefficient=0.01), resolve)
    answers = judged(SHAPE, {1, 3})
    expected, whole = update(answers, algorithm, None, tokens_per_micro_batch=24)
    found, metrics = update(answers, algorithm, without_mask, tokens_per_micro_batch=24)
    assert_same(found, expected)
    assert metrics["update/skipped_responses"] == sum(not any(t.mask) for t in answers)
    assert metrics["entropy"] == pytest.approx(whole["entropy"], rel=1e-9)  # the same tokens


def test_one_response_of_each_kind_of_prompt_stays():
    """A tower that only pictures reach gets zeros from an idle picture, and nothing if none is read."""
    answers = judged(SHAPE, {1, 2})
    pictures = [t for t in answers if t.group == answers[5].group]
    object.__setattr__(pictures[0].prompt, "media", {"pixel_values": torch.zeros(1)})
    kept = worth_reading(answers, without_advantage, World())
    assert [t for t in kept if t.prompt.media] == [min(pictures, key=len)]
    assert [t for t in kept if not t.prompt.media] == [t for t in answers if not without_advantage(t)]


def test_no_advantage_is_no_doubt():
    (t,) = tiny_trajectories([(2, [3])])
    for advantages, idle in (
        ([0.0, -0.0, 0.0], True),
        ([0.0, 0.0, 1e-30], False),
        ([float("nan"), 0, 0], False),
    ):
        t.columns["advantages"] = torch.tensor(advantages)
        assert without_advantage(t) is idle
    t.mask = [True, True, False]
    t.columns["advantages"] = torch.tensor([0.0, 0.0, 3.0])
    assert without_advantage(t)
    assert not without_mask(t)
