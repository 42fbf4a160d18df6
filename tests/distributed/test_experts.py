"""Mixtures of experts on two ranks: with the balancing loss, replayed experts and adapters, in every backend, the weights of one process."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lightrft.config import LoraConfig, ModelConfig, UpdateConfig
from lightrft.models.experts import routers_of
from lightrft.models.export import save_model
from lightrft.models.load import load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.testing import tiny_processor
from lightrft.trainer.batching import Batching
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.routers import RouterWatch
from lightrft.types import Terms
from tests.distributed.launch import together
from tests.distributed.test_strategies import (
    BACKENDS,
    CPU,
    OPTIONS,
    TOKENS,
    answers_of,
    full,
    share,
    strategy_of,
)
from tests.oracles.test_routing import widened

COEFFICIENT = 0.5
"""Of the balancing loss: large, so that weights would show its absence."""
KINDS = {
    "own": ({}, False),
    "replayed": ({"gradient_checkpointing": True}, True),
    "adapters": ({"lora": LoraConfig(rank=2)}, True),
}
"""Settings of the model, and whether experts are replayed."""


def with_experts(answers, routers, step):
    """Answers with experts that no router would have chosen; one answer has none, as of an engine that went on without them."""
    draw = torch.Generator().manual_seed(step)
    for t in answers[1:]:
        read = len(t.prompt.token_ids) + len(t) - 1
        order = torch.rand(read, len(routers.layers), routers.num_experts, generator=draw).argsort(-1)
        t.experts = order[..., : routers.per_token].to(routers.compact)
    return answers


def learned(backend, config, replays):
    """Weights after three steps, and what was told of each update."""
    source, world = Source(config), World.current()
    model = strategy_of(backend).trainable(source, OPTIONS, 6)
    routers = routers_of(model.module)
    updates = UpdateConfig(num_minibatches=2, tokens_per_micro_batch=TOKENS)
    batching = Batching(updates, world, CPU, dummy_answer(load_processor(config).blank()))
    watch, told = RouterWatch(routers, batching, COEFFICIENT, replays), []

    def compute(batch):
        return model.compute(partial(logprobs, temperature=0.7, max_logits=2000, balances=True), batch)

    def loss(batch):
        new = compute(batch)
        return Terms(-batch.advantages * new.values, auxiliary=watch.loss(new))

    for step in range(3):
        answers = answers_of(step)
        mine = share(with_experts(answers, routers, step) if replays else answers, world, step)
        parts = watch.surveyed(batching.updates(mine, seed=step), compute)
        for report in optimize(model, parts, loss, averaging=Averaging("sequence", 16), batching=batching):
            told.append({"grad_norm": report["grad_norm"], **watch.metrics()})  # noqa: PERF401
    return full(model), told


def all_kinds(backend, folder):
    torch.manual_seed(0)
    return {
        name: learned(backend, ModelConfig(path=folder, **model), replays)
        for name, (model, replays) in KINDS.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny mixture whose routers have clear opinions, so that no rounding decides between two experts."""
    made = tmp_path_factory.mktemp("mixture")
    save_model(widened("qwen3_moe"), tiny_processor(), made)
    return str(made)


@pytest.fixture(scope="module")
def alone(folder):
    return all_kinds("single", folder)


def test_each_part_of_the_comparison_is_seen_in_the_weights(alone):
    weights, told = alone["own"]
    assert (
        max(float((weights[name] - other).abs().max()) for name, other in alone["replayed"][0].items()) > 1e-5
    )
    assert all(row["router/aux_loss"] > 0 for row in told)
    rows = [row for _, told in (alone["replayed"], alone["adapters"]) for row in told]
    assert all(0.5 < row["router/replayed"] <= 1 and row["router/replay_changed"] > 0.2 for row in rows)
    assert any(row["router/replayed"] < 1 for row in rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_learn_what_one_process_learns(backend, alone, folder):
    ranks = together(all_kinds, 2, backend, folder, seconds=240)
    for name, (weights, told) in alone.items():
        for found in ranks:
            theirs, theirs_told = found[name]
            assert theirs.keys() == weights.keys()
            for key, weight in weights.items():
                assert_close(theirs[key], weight, atol=1e-6, rtol=0, msg=f"{name} {key}")
            for mine, other in zip(told, theirs_told, strict=True):
                assert other == pytest.approx(mine, rel=1e-4, abs=1e-6)
