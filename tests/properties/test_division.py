"""A response of denoising steps may be divided over micro-batches; nothing but memory depends on it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.algorithm import build
from lightrft.algorithms.losses import LOSSES
from lightrft.algorithms.online_preference import ONLINE_LOSSES
from lightrft.config import (
    AlgorithmConfig,
    Config,
    DenoiseConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    TaskConfig,
    UpdateConfig,
)
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double, tiny_trajectories
from lightrft.trainer.batching import Batching, pack
from lightrft.trainer.division import divide
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.rollout import rollout
from lightrft.trainer.score import _keep_means, fill
from lightrft.types import Sampling
from lightrft.utils.imports import resolve
from lightrft.utils.interrupt import Interrupt
from tests.e2e.runs import PACKING
from tests.pipelines import made, prompts, sd3_pipeline

EXACT = AlgorithmConfig(kl="exact", kl_coefficient=0.3, clip=[1e-3, 1e-3])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Kind, module and responses of five steps each, with all that a loss reads."""
    folder = tmp_path_factory.mktemp("divided") / "pipeline"
    sd3_pipeline().save_pretrained(folder)
    options = DenoiseConfig(steps=6, max_text_tokens=8, height=16, width=16, likelihood="sum")
    config = Config(
        model=ModelConfig(path=str(folder)),
        rollout=RolloutConfig(engine="denoise", denoise=options),
        tasks=TaskConfig(train={"digits": 1.0}),
        algorithm=EXACT,
    )
    kind, module, engine = made(config)
    groups = rollout(
        engine, prompts(kind, ("a two", "nine", "the digit five")), Sampling(n=2, seed=1), kind.processor
    )
    answers = [t for group in groups for t in group]
    draw = torch.Generator().manual_seed(0)
    for t in answers:
        t.mask = [bool(x) for x in torch.rand(len(t), generator=draw) < 0.8]
        for name in ("old", "ref"):
            t.columns[name] = torch.tensor(t.behavior) + 0.3 * torch.randn(len(t), generator=draw)
        t.columns["advantages"] = torch.randn(len(t), generator=draw)
        assert t.states is not None
        t.reference = t.states[:, 1] + 0.1 * torch.randn(t.states[:, 1].shape, generator=draw)
    return kind, module.double(), answers


def learned(kind, module, answers, steps, average):
    """Gradient, metrics, the most positions of a micro-batch and what was told of each entry, with room for so many steps."""
    width = kind.processor.width
    model = SingleTrainable(module, OptimizerConfig(learning_rate=0.0), total_updates=1)
    module.zero_grad()
    algorithm, found, sizes = build(EXACT, resolve), {}, []

    def loss(batch):
        sizes.append(batch.inputs.read)
        new = kind.logprobs(module, batch, kind.config)
        batch.divergence = new.divergence
        terms = algorithm.loss(new.values, batch, new.entropy)
        return dataclasses.replace(terms, tokens={"new": new.values.detach()})

    def keep(index, norm):
        found["gradient"] = torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])

    config = UpdateConfig(tokens_per_micro_batch=steps * width + width - 1)
    batching = Batching(
        config, World(), torch.device("cpu"), entrywise=algorithm.entrywise, layout=kind.layout
    )
    fresh = [dataclasses.replace(t, learned={}) for t in answers]
    with keep_double():
        (metrics,) = optimize(
            model, batching.updates(fresh, seed=0), loss,
            averaging=Averaging(average, 5), batching=batching, before_update=keep, keep_tokens=True,
        )  # fmt: skip
    return found["gradient"], metrics, max(sizes) // width, [t.learned["new"] for t in fresh]


@settings(max_examples=12, deadline=None)
@given(steps=st.integers(1, 7), average=st.sampled_from(["token", "sequence", "fixed", "group"]))
def test_gradient_and_metrics_do_not_depend_on_how_steps_are_divided(drawn, steps, average):
    kind, module, answers = drawn
    whole, expected, _, told = learned(kind, module, answers, 100, average)
    found, metrics, most, again = learned(kind, module, answers, steps, average)
    assert most <= steps
    assert float((found - whole).abs().max()) <= 1e-6 * float(whole.abs().max())
    for name, value in expected.items():
        if not name.startswith(PACKING):
            assert metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    assert torch.allclose(torch.cat(again), torch.cat(told), rtol=1e-5, atol=1e-4)
    assert [len(one) for one in again] == [5] * len(answers)


def test_columns_and_means_of_a_divided_response_come_back_whole_and_in_order(drawn):
    kind, module, answers = drawn
    found = []
    for steps in (100, 2):
        fresh = [dataclasses.replace(t, columns={}, reference=None) for t in answers]
        config = UpdateConfig(tokens_per_micro_batch=steps * kind.processor.width)
        batching = Batching(config, World(), torch.device("cpu"), layout=kind.layout)

        def compute(batch):
            with torch.no_grad():
                told = kind.logprobs(module, batch, kind.config)
            return told.values, told.means

        fill(fresh, compute, "ref", batching=batching, interrupt=Interrupt(), take=_keep_means)
        found.append(fresh)
    for one, other in zip(*found, strict=True):
        assert len(other.columns["ref"]) == 5
        assert torch.allclose(one.columns["ref"], other.columns["ref"], rtol=1e-5, atol=1e-4)
        assert torch.allclose(one.reference, other.reference, atol=1e-5)


def test_what_was_written_is_never_divided():
    answers = tiny_trajectories([(5, [4, 7]), (3, [6])], seed=0)
    assert [[part.piece for part in parts] for parts in divide(answers, 1).parts] == [[t] for t in answers]


@pytest.mark.parametrize("name", [*LOSSES, *ONLINE_LOSSES])
def test_a_loss_says_whether_it_looks_at_more_than_an_entry(name):
    """Said to be entrywise are those whose numbers do not change when every entry stands alone, and no others."""
    options = {"orpo": {}, "topr": {"weight_limit": 5.0}}.get(name, {})
    algorithm = build(AlgorithmConfig(loss=name, advantage="group_norm", options=options), resolve)
    answers = tiny_trajectories([(5, [4, 7]), (3, [6, 5])], seed=3)
    draw = torch.Generator().manual_seed(1)
    batch = pack(answers, inputs=False)
    count = batch.num_tokens
    batch.old, batch.ref, new = (0.3 * torch.randn(count, generator=draw) - 2 for _ in range(3))
    batch.advantages = torch.randn(count, generator=draw)
    batch.scores = torch.randn(len(answers), generator=draw)
    batch.marks = (torch.rand(count, generator=draw) < 0.5).float()
    batch.moved = torch.rand(count, generator=draw)
    owners = batch.segments
    alone = dataclasses.replace(
        batch, segments=torch.arange(count), groups=batch.groups[owners], scores=batch.scores[owners]
    )
    whole, single = (algorithm.policy_loss(new, b, algorithm.config).loss for b in (batch, alone))
    assert torch.equal(whole, single) is algorithm.entrywise


def test_what_is_decided_for_a_whole_response_is_never_divided():
    for changes in ({"mismatch_level": "sequence", "mismatch_limit": 2.0}, {"off_policy_mask_limit": 0.1}):
        assert build(AlgorithmConfig(loss="clipped", advantage="group_norm"), resolve).entrywise
        assert not build(
            AlgorithmConfig(loss="clipped", advantage="group_norm", **changes), resolve
        ).entrywise
