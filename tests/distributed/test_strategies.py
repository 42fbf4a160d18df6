"""One contract for every backend: any number of ranks, uneven work, the same weights as one process."""

from functools import partial
from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from lightrft.algorithms.constraint import values_loss
from lightrft.build.tables import STRATEGIES
from lightrft.config import (
    ZERO,
    DeepspeedConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    StrategyConfig,
    UpdateConfig,
)
from lightrft.models.critic_source import CriticSource
from lightrft.models.load import load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.models.values import values
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.testing import check_strategy, tiny_trajectories
from lightrft.trainer.batching import Batching, by_group
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Terms
from tests.distributed.launch import together
from tests.oracles.test_supports import given_supports

SHAPE = [(6, [5, 3, 9, 1]), (4, [2, 7]), (9, [1]), (3, [12, 4, 4])]
CPU = torch.device("cpu")
OPTIONS = OptimizerConfig(
    learning_rate=1e-3, weight_decay=0.1, max_grad_norm=0.5, schedule="linear", eps=1e-4
)
"""eps: AdamW divides by the gradient, so that rounding in one of nearly 0 would become a whole step."""
TOKENS = 24
"""Of a micro-batch: several per update, and not the same number on each rank."""


def answers_of(step, family="llama"):
    """The same for everybody: answers of a step with something to learn from."""
    answers = tiny_trajectories(SHAPE, seed=step)
    draw = torch.Generator().manual_seed(step)
    for t in answers:
        for name in ("advantages", "returns", "values", "cost_returns", "cost_values"):
            t.columns[name] = torch.randn(len(t), generator=draw)
    if step == 2:  # as tokens that were drawn among a part of the vocabulary
        given_supports(answers)
    return answers


def share(answers, world, step):
    """This rank's answers: very uneven, and in the second step none at all on the last rank."""
    groups = by_group(answers)
    owner = [0, 0, 1, 0] if step != 1 else [0, 0, 0, 0]
    return [
        t for group, rank in zip(groups, owner, strict=True) for t in group if rank % world.size == world.rank
    ]


def policy_loss(model, batch):
    new = model.compute(partial(logprobs, temperature=0.7, max_logits=2000), batch)
    return Terms(-batch.advantages * new.values - 0.01 * new.entropy, {"entropy": new.entropy})


def critic_loss(model, batch):
    return values_loss(model.compute(values, batch), batch, 0.2)


PIECES = DeepspeedConfig(param_persistence_threshold=0)
"""All weights of a tiny model would be small enough to stay whole."""
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install 'deepspeed<0.20'"
)
ZEROS = [pytest.param(name, marks=needs_deepspeed) for name in ZERO]
BACKENDS = ["fsdp", *ZEROS]


def strategy_of(backend, **options):
    defaults = {"deepspeed": PIECES} if backend == "zero3" else {}
    return STRATEGIES[backend](StrategyConfig(backend=backend, **(defaults | options)), CPU)


def learn(model, steps, loss, source):
    """What each update reports, for `steps`."""
    world, config = World.current(), UpdateConfig(num_minibatches=2, tokens_per_micro_batch=TOKENS)
    batching = Batching(config, world, CPU, dummy_answer(load_processor(source.config).blank()))
    found = []
    for step in steps:
        found += optimize(
            model,
            batching.updates(share(answers_of(step), world, step), seed=step),
            partial(loss, model),
            averaging=Averaging("sequence", 16),
            batching=batching,
        )
    return found


def full(model):
    with model.adapters_merged():
        return {name: weight.detach().clone() for name, weight in model.weights()}


def trained(backend, source, loss, options):
    """Weights and reports after three steps, and the state."""
    model = strategy_of(backend, **options).trainable(source, OPTIONS, 6)
    reports = learn(model, range(3), loss, source)
    return full(model), reports, model.scalar_state()


ACTOR = Source(ModelConfig(path="random:llama"))
KINDS = {
    "plain": (ACTOR, policy_loss, {}),
    "recomputed": (Source(ModelConfig(path="random:qwen3", gradient_checkpointing=True)), policy_loss, {}),
    "adapters": (Source(ModelConfig(path="random:llama", lora=LoraConfig(rank=2))), policy_loss, {}),
    "half_frozen": (Source(ModelConfig(path="random:llama", freeze=["layers:1"])), policy_loss, {}),
    "critic": (CriticSource(ModelConfig(path="random:qwen2")), critic_loss, {}),
    "critic_of_cost": (CriticSource(ModelConfig(path="random:qwen2"), cost_output=""), critic_loss, {}),
}


def all_kinds(backend):
    return {name: trained(backend, source, loss, options) for name, (source, loss, options) in KINDS.items()}


@pytest.fixture(scope="module")
def alone():
    torch.manual_seed(0)
    return all_kinds("single")


def seeded(function, *args):
    torch.manual_seed(0)
    return function(*args)


def checked(backend):
    found = check_strategy(strategy_of(backend), ACTOR, tolerance=1e-5)
    return found.passed, found.lacking


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_passes_the_checks_that_a_users_own_must_pass(backend):
    for passed, lacking in together(checked, 2, backend):
        assert lacking == {}
        assert len(passed) > 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_ranks_learn_what_one_process_learns(backend, alone):
    ranks = together(seeded, 2, all_kinds, backend)
    for name in KINDS:
        weights, reports, numbers = alone[name]
        for found in ranks:
            theirs, their_reports, their_numbers = found[name]
            assert theirs.keys() == weights.keys(), name
            for key in weights:
                assert_close(theirs[key], weights[key], atol=1e-6, rtol=0, msg=f"{name} {key}")
            assert their_numbers == numbers
            assert [r["grad_norm"] for r in their_reports] == pytest.approx(
                [r["grad_norm"] for r in reports], rel=1e-4
            )
            assert [r["loss"] for r in their_reports] == pytest.approx([r["loss"] for r in reports], abs=1e-5)


@pytest.mark.extended
@pytest.mark.parametrize(("backend", "ranks"), [("single", 1), ("fsdp", 2)])
def test_compiled_layers_learn_what_plain_ones_learn(backend, ranks):
    plain = Source(ModelConfig(path="random:qwen3", gradient_checkpointing=True))
    compiled = Source(ModelConfig(path="random:qwen3", gradient_checkpointing=True, compile=True))
    weights, reports, _ = seeded(trained, "single", plain, policy_loss, {})
    given = trained, backend, compiled, policy_loss, {}
    for theirs, their_reports, _ in together(seeded, ranks, *given) if ranks > 1 else [seeded(*given)]:
        for key in weights:
            assert_close(theirs[key], weights[key], atol=1e-5, rtol=0, msg=key)
        for name in ("grad_norm", "loss"):
            right = [r[name] for r in reports]
            assert [r[name] for r in their_reports] == pytest.approx(right, rel=1e-4, abs=1e-5)
