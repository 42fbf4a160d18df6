"""What a masked diffusion language model says and learns does not depend on who stands beside it, nor on how its responses are divided."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.algorithm import build
from lightrft.config import AlgorithmConfig, OptimizerConfig, UpdateConfig
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double
from lightrft.trainer.batching import Batching
from lightrft.trainer.division import divide
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.rollout import rollout
from lightrft.trainer.score import fill
from lightrft.types import Sampling
from lightrft.utils.imports import resolve
from lightrft.utils.interrupt import Interrupt
from tests.e2e.runs import PACKING
from tests.masked import made, prompts
from tests.masked import settings as masked

WAYS = {
    "path": {"tokens_per_step": 2, "block": 4},
    "mean_field": {"likelihood": "mean_field", "prompt_mask": 0.3},
    "elbo": {"likelihood": "elbo", "draws": 2},
}


@pytest.fixture(scope="module", params=WAYS)
def sampled(request):
    """Kind, float64 module and scored responses."""
    kind, module, engine = made(masked(max_tokens=8, **WAYS[request.param]), torch.float64)
    groups = rollout(engine, prompts(kind), Sampling(n=2, max_tokens=8, seed=1), kind.processor)
    answers = [t for group in groups for t in group]
    draw = torch.Generator().manual_seed(0)
    for t in answers:
        t.columns["old"] = torch.tensor(t.behavior) + 0.3 * torch.randn(len(t), generator=draw)
        t.columns["advantages"] = torch.randn(len(t), generator=draw)
    answers[1].mask = [False] * len(answers[1])
    return kind, module.requires_grad_(), answers


def learned(kind, module, answers, budget, average):
    """Gradient, metrics, and what was told of each token, with micro-batches of `budget` positions."""
    module.zero_grad()
    model = SingleTrainable(module, OptimizerConfig(learning_rate=0.0), total_updates=1)
    algorithm, found = build(AlgorithmConfig(), resolve), {}

    def loss(batch):
        new = kind.logprobs(module, batch, kind.config)
        terms = algorithm.loss(new.values, batch, new.entropy)
        return dataclasses.replace(terms, tokens={"new": new.values.detach()})

    def keep(_index, _norm):
        found["gradient"] = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])

    batching = Batching(
        UpdateConfig(tokens_per_micro_batch=budget),
        World(),
        torch.device("cpu"),
        entrywise=True,
        layout=kind.layout,
    )
    fresh = [dataclasses.replace(t, learned={}) for t in answers]
    with keep_double():
        (metrics,) = optimize(
            model, batching.updates(fresh, seed=0), loss,
            averaging=Averaging(average, 8), batching=batching, before_update=keep, keep_tokens=True,
        )  # fmt: skip
    return found["gradient"], metrics, [t.learned["new"] for t in fresh]


@settings(max_examples=3, deadline=None)
@given(
    budget=st.sampled_from([1, 30, 70, 400]),
    average=st.sampled_from(["token", "sequence", "fixed"]),
    order=st.permutations(range(6)),
)
def test_gradient_and_metrics_depend_on_neither_division_nor_order(sampled, budget, average, order):
    kind, module, answers = sampled
    whole, expected, told = learned(kind, module, answers, 10_000, average)
    found, metrics, again = learned(kind, module, [answers[i] for i in order], budget, average)
    assert float((found - whole).abs().max()) <= 1e-10 * float(whole.abs().max())
    for name, value in expected.items():
        if not name.startswith(PACKING):
            assert metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    for place, one in zip(order, again, strict=True):
        assert torch.allclose(one, told[place], atol=1e-6)


def test_log_probs_come_back_in_their_places_however_they_were_divided(sampled):
    kind, module, answers = sampled
    found = []
    for budget in (10_000, 20):
        fresh = [dataclasses.replace(t, columns={}) for t in answers]
        batching = Batching(
            UpdateConfig(tokens_per_micro_batch=budget), World(), torch.device("cpu"), layout=kind.layout
        )

        def compute(batch):
            with torch.no_grad():
                return (kind.logprobs(module, batch, kind.config).values,)

        fill(fresh, compute, "old", batching=batching, interrupt=Interrupt())
        found.append(fresh)
    for one, other, t in zip(*found, answers, strict=True):
        assert torch.allclose(one.columns["old"], other.columns["old"], atol=1e-6)
        assert torch.allclose(one.columns["old"], torch.tensor(t.behavior), atol=1e-6)


def test_a_part_reads_no_more_than_its_share(sampled):
    kind, _, answers = sampled
    parts = divide(answers, 30).parts[0]
    read = [kind.layout([part.piece], True).read for part in parts]
    if kind.config.rollout.unmask.likelihood == "path":
        assert len(parts) > 1
        assert sum(read) == kind.layout(answers[:1], True).read
        assert max(read) <= 30
    assert kind.layout(answers[:1], True).read <= len(answers[0]) * answers[0].prompt.width


@pytest.mark.parametrize("way", WAYS)
def test_a_response_is_the_same_alone_among_others_and_on_another_rank(way):
    kind, _, engine = made(masked(max_tokens=8, **WAYS[way]), torch.float64)
    asked = prompts(kind)
    together = engine.generate(asked, Sampling(n=3, max_tokens=8, seed=4))
    engine.config = dataclasses.replace(engine.config, max_sequences=2)
    for place, prompt in enumerate(asked):
        alone = engine.generate(
            [prompt], Sampling(n=3, max_tokens=8, seed=4, first_index=place, index_stride=7)
        )
        for one, other in zip(alone[0], together[place], strict=True):
            assert one.token_ids == other.token_ids
            assert torch.equal(one.states, other.states)
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-10)
