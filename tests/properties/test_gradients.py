"""One update is one update: how answers are packed, ordered or recomputed cannot change its gradient."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.algorithm import build
from lightrft.config import AlgorithmConfig, ModelConfig, OptimizerConfig, UpdateConfig
from lightrft.models.load import load_model
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double, tiny_trajectories
from lightrft.trainer.batching import COLUMNS, Batching, minibatches, pack, plan, unpack
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.utils.imports import resolve
from tests.e2e.runs import PACKING

TEMPERATURE = 0.9
MODELS = {
    kept: load_model(ModelConfig(path="random:qwen3", gradient_checkpointing=recomputed)).double()
    for kept, recomputed in (("kept", False), ("recomputed", True))
}
ALGORITHM = build(AlgorithmConfig(entropy_coefficient=0.01, kl_coefficient=0.1), resolve)

shapes = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), min_size=1, max_size=4)), min_size=1, max_size=5
)


def judged(shape, seed=0):
    """Answers with every column that the loss reads, and some tokens that are not to be learned."""
    answers = tiny_trajectories(shape, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for t in answers:
        t.mask = [bool(x) for x in torch.rand(len(t), generator=draw) < 0.8]
        for name in ("old", "ref"):
            t.columns[name] = -5.5 + 0.3 * torch.randn(len(t), generator=draw)
        t.columns["advantages"] = torch.randn(len(t), generator=draw)
    return answers


def gradient(answers, *, average="sequence", activations="kept", **update):
    """The gradient that `optimize` hands to the first optimizer step, one flat vector, and the step's metrics."""
    model = SingleTrainable(MODELS[activations], OptimizerConfig(learning_rate=0.0), total_updates=1)
    model.module.zero_grad()
    found = {}

    def loss(batch):
        new = logprobs(model.module, batch, temperature=TEMPERATURE, max_logits=10**9)
        return ALGORITHM.loss(new.values, batch, new.entropy)

    def keep(index, norm):
        grads = [p.grad for p in model.module.parameters()]
        found["gradient"] = (
            torch.cat([g.reshape(-1) for g in grads if g is not None])
            if any(g is not None for g in grads)
            else torch.zeros(1)
        )
        found["norm"] = norm

    batching = Batching(UpdateConfig(**update), World(), torch.device("cpu"))
    with keep_double():
        steps = optimize(
            model,
            batching.updates(answers, seed=0),
            loss,
            averaging=Averaging(average, 20),
            batching=batching,
            before_update=keep,
        )
        metrics = next(iter(steps))
    return found["gradient"].clone(), metrics


def same(one, other):
    scale = max(float(one.abs().max()), 1e-6)
    return one.shape == other.shape and float((one - other).abs().max()) <= 1e-12 * scale


@settings(max_examples=40)
@given(
    shapes,
    st.integers(1, 80),
    st.booleans(),
    st.sampled_from(["token", "sequence", "fixed"]),
    st.sampled_from(sorted(MODELS)),
    st.randoms(use_true_random=False),
)
def test_packing_order_and_recomputation_do_not_change_the_gradient(
    shape, budget, share, average, activations, shuffle
):
    answers = judged(shape)
    expected, recorded = gradient(answers, average=average, tokens_per_micro_batch=10**6)
    mixed = list(answers)
    shuffle.shuffle(mixed)
    found, metrics = gradient(
        mixed, average=average, activations=activations, tokens_per_micro_batch=budget, share_prompts=share
    )
    assert same(found, expected)
    assert metrics.keys() == recorded.keys()
    for name, value in recorded.items():
        if name.startswith(PACKING):
            continue
        assert metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_the_gradient_is_the_plain_sum_over_tokens():
    """The definition written out for the token average: one answer at a time, and no packing code but for one answer."""
    answers = judged([(5, [4, 7]), (3, [6])])
    chosen = sum(sum(t.mask) for t in answers)
    total = 0.0
    module = MODELS["kept"]
    module.zero_grad()
    with keep_double():
        for t in answers:
            batch = pack([t])
            new = logprobs(module, batch, temperature=TEMPERATURE, max_logits=10**9)
            terms = ALGORITHM.loss(new.values, batch, new.entropy)
            total = total + sum(x for x, m in zip(terms.loss, t.mask, strict=True) if m) / chosen
        total.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    module.zero_grad()
    found, metrics = gradient(answers, average="token")
    assert float((found - expected).abs().max()) <= 1e-7 * float(expected.abs().max())  # weights are float32
    assert metrics["loss"] == pytest.approx(float(total.detach()), rel=1e-6)


@given(shapes, st.integers(1, 6), st.integers(0, 5))
def test_minibatches_share_out_every_answer_once_and_evenly(shape, count, seed):
    answers = tiny_trajectories(shape)
    parts = minibatches(answers, count, seed=seed)
    assert Counter(id(t) for part in parts for t in part) == Counter(id(t) for t in answers)
    sizes = [len(part) for part in parts]
    assert len(parts) == min(count, len(answers))
    assert max(sizes) - min(sizes) <= 1


@given(shapes, st.integers(2, 6), st.integers(0, 100))
def test_minibatches_split_a_group_only_at_a_border(shape, count, seed):
    """Each part is a run of whole groups, but for its first and its last."""
    for part in minibatches(tiny_trajectories(shape), count, seed=seed):
        groups = [t.group for t in part]
        whole = set(groups) - {groups[0], groups[-1]}
        for group in whole:
            assert groups.count(group) == len(shape[group][1])


def cost(answers, share):
    prompts = [len(t.prompt.token_ids) for t in answers]
    if share:
        prompts = list({t.group: len(t.prompt.token_ids) for t in answers}.values())
    return sum(prompts) + sum(len(t) for t in answers)


@given(shapes, st.integers(1, 60), st.booleans())
def test_a_plan_reads_every_answer_once_within_the_budget(shape, budget, share):
    answers = tiny_trajectories(shape)
    batches = plan(answers, budget, share_prompts=share)
    assert Counter(id(t) for batch in batches for t in batch) == Counter(id(t) for t in answers if len(t))
    for batch in batches:
        assert cost(batch, share) <= budget or len(batch) == 1


@given(shapes, st.integers(1, 60), st.booleans())
def test_the_tokens_that_are_read_are_those_the_plan_counted(shape, budget, share):
    for batch in plan(tiny_trajectories(shape), budget, share_prompts=share):
        assert pack(batch, share_prompts=share).inputs.token_ids.numel() == cost(batch, share)


@given(shapes, st.booleans(), st.sampled_from(COLUMNS))
def test_what_is_packed_comes_back_unpacked(shape, share, name):
    answers = tiny_trajectories(shape)
    draw = random.Random(0)
    for t in answers:
        t.columns[name] = torch.tensor([draw.random() for _ in range(len(t))])
        t.mask = [draw.random() < 0.5 for _ in range(len(t))]
    batch = pack(answers, share_prompts=share)
    copies = [replace(t, columns={}) for t in answers]
    unpack(getattr(batch, name), copies, name)
    unpack(batch.behavior, copies, "behavior")
    for t, copy in zip(answers, copies, strict=True):
        assert torch.equal(copy.columns[name], t.columns[name])
        assert torch.equal(copy.columns["behavior"], torch.tensor(t.behavior, dtype=torch.float32))
    lengths = [len(t) for t in answers]
    assert [x.tolist() for x in batch.inputs.targets.split(lengths)] == [t.token_ids for t in answers]
    assert [x.tolist() for x in batch.mask.split(lengths)] == [t.mask for t in answers]
    for t, prompt, response in zip(
        answers, batch.inputs.prompt_spans, batch.inputs.response_spans, strict=True
    ):
        assert batch.inputs.token_ids[slice(*prompt)].tolist() == t.prompt.token_ids
        assert batch.inputs.token_ids[slice(*response)].tolist() == t.token_ids


@given(shapes, st.booleans())
def test_each_response_token_is_predicted_from_the_token_before_it(shape, share):
    answers = tiny_trajectories(shape)
    inputs = pack(answers, share_prompts=share).inputs
    before = [x for t in answers if len(t) for x in [t.prompt.token_ids[-1], *t.token_ids[:-1]]]
    assert inputs.token_ids[inputs.predict].tolist() == before
    places = [
        x for t in answers for x in range(len(t.prompt.token_ids) - 1, len(t.prompt.token_ids) + len(t) - 1)
    ]
    assert inputs.positions[inputs.predict].tolist() == places
