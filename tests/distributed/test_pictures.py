"""The gradient of denoising steps is the same on one, two and four ranks, in double precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch.distributed.tensor import DTensor

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.algorithms.algorithm import build
from lightrft.config import Config, UpdateConfig
from lightrft.models.pictures import Pictures
from lightrft.models.pipelines import FlowSource
from lightrft.parallel.world import World
from lightrft.testing import keep_double
from lightrft.trainer.batching import Batching, by_group
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.rollout import rollout
from lightrft.types import Sampling
from lightrft.utils.imports import resolve
from tests.distributed.launch import together
from tests.distributed.test_strategies import CPU, OPTIONS, strategy_of
from tests.pipelines import made, prompts, sd3_pipeline
from tests.unit.engines.test_denoise import WORDS, settings


@dataclass(frozen=True)
class Double(FlowSource):
    """The network in float64."""

    @property
    def dtype(self):
        return torch.float64


def asked(folder) -> Config:
    """Four steps of 16 x 16 pixels with a clipped loss and a divergence."""
    config = settings(folder, height=16, width=16)
    return replace(
        config,
        algorithm=replace(config.algorithm, kl="exact", kl_coefficient=0.3, clip=[1e-3, 1e-3]),
    )


def answers_of(config):
    """The same for everybody: what is drawn, with all that the loss reads."""
    kind, _, engine = made(config)
    groups = rollout(engine, prompts(kind, WORDS), Sampling(n=3, seed=1), kind.processor)
    answers, draw = [t for group in groups for t in group], torch.Generator().manual_seed(0)
    for t in answers:
        for name in ("old", "ref"):
            t.columns[name] = torch.tensor(t.behavior) + 0.3 * torch.randn(len(t), generator=draw)
        t.columns["advantages"] = torch.randn(len(t), generator=draw)
        t.reference = t.states[:, 1] + 0.1 * torch.randn(t.states[:, 1].shape, generator=draw)
    return answers


def gradient(folder, answers, backend):
    """{weight: its gradient} of one update, of all ranks together. Groups lie on the ranks as they come, so that of four ranks one has nothing."""
    config, world = asked(folder), World.current()
    kind, algorithm = Pictures.of(config), build(config.algorithm, resolve)
    mine = [t for n, group in enumerate(by_group(answers)) for t in group if n % world.size == world.rank]
    # Outside keep_double: a buffer that the network computes for itself is float32, as in its file.
    model = strategy_of(backend).trainable(Double(config.model), OPTIONS, 1)
    with keep_double():
        update = UpdateConfig(tokens_per_micro_batch=7 * kind.processor.width)
        batching = Batching(update, world, CPU, kind.blank(), entrywise=True, layout=kind.layout)
        found = {}

        def keep(_index, _norm):
            for name, p in model.module.named_parameters():
                if p.grad is not None:
                    whole = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
                    found[name] = whole.clone()

        def loss(batch):
            new = model.compute(partial(kind.logprobs, config=config), batch)
            batch.divergence = new.divergence
            return algorithm.loss(new.values, batch, new.entropy)

        list(optimize(
            model, batching.updates(mine, seed=0), loss,
            averaging=Averaging("sequence", 5), batching=batching, before_update=keep,
        ))  # fmt: skip
    return found


@pytest.mark.extended
@pytest.mark.timeout(900)
def test_the_gradient_is_the_same_on_one_two_and_four_ranks(tmp_path):
    sd3_pipeline().save_pretrained(tmp_path / "pipeline")
    answers = answers_of(asked(tmp_path / "pipeline"))
    expected = gradient(tmp_path / "pipeline", answers, "single")
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 0
    assert all(g.dtype == torch.float64 for g in expected.values())
    for ranks in (2, 4):
        for found in together(gradient, ranks, tmp_path / "pipeline", answers, "fsdp", seconds=240):
            assert found.keys() == expected.keys()
            apart = max(float((found[name] - g).abs().max()) for name, g in expected.items())
            assert apart <= 1e-10 * largest
