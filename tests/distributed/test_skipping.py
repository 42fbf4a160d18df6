"""Responses without advantage are left out on two ranks, of which one has no others in an update: nobody waits, and weights are the same."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lightrft.config import UpdateConfig
from lightrft.models.load import load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.testing import keep_double, tiny_trajectories
from lightrft.trainer.batching import Batching, by_group
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.skipping import without_advantage
from lightrft.types import Terms
from tests.distributed.launch import together
from tests.distributed.test_fsdp import DOUBLE
from tests.distributed.test_strategies import ACTOR, BACKENDS, CPU, OPTIONS, full, strategy_of

SHAPE = [(6, [5, 3, 9]), (4, [2, 7]), (9, [4, 6]), (3, [8, 4, 4])]
OWNERS = (0, 1, 1, 0)
IDLE = ({1, 2}, {0, 1, 2, 3}, {0})
"""Groups without advantage in each step: all that the second rank has, all of both ranks, and some of the first."""
SKIPPED = [4, 9, 3]
"""Only where nothing else is left on any rank one response stays."""
READ = ("loss", "grad_norm", "entropy", "update/skipped_responses")


def answers_of(step):
    answers, draw = tiny_trajectories(SHAPE, seed=step), torch.Generator().manual_seed(step)
    for place, group in enumerate(by_group(answers)):
        for t in group:
            column = torch.randn(len(t), generator=draw)
            t.columns["advantages"] = torch.zeros(len(t)) if place in IDLE[step] else column
    return answers


def policy_loss(model, batch):
    new = model.compute(partial(logprobs, temperature=0.7, max_logits=2000), batch)
    return Terms(-batch.advantages * new.values, {"entropy": new.entropy})


def learned(backend, source, idle, team=1):
    """Weights after the steps, and what each told."""
    model, told = strategy_of(backend).trainable(source, OPTIONS, 3), []
    world = World.current(team)
    blank = dummy_answer(load_processor(source.config).blank())
    batching = Batching(UpdateConfig(tokens_per_micro_batch=16), world, CPU, blank)
    for step in range(3):
        groups = zip(by_group(answers_of(step)), OWNERS, strict=True)
        mine = [t for group, owner in groups for t in group if owner % world.size == world.rank]
        (metrics,) = optimize(
            model,
            batching.updates(mine, seed=step),
            partial(policy_loss, model),
            averaging=Averaging("sequence", 16),
            batching=batching,
            idle=idle,
        )
        told.append({name: metrics[name] for name in READ if name in metrics})
    return full(model), told


def exactly(*args):
    with keep_double():
        return learned(*args)


@pytest.fixture(scope="module")
def whole():
    return learned("single", ACTOR, None)[0]


def agrees(ranks, weights, told, tolerance):
    """Whether all ranks have these weights, and told this, however the responses were shared out."""
    assert [row["update/skipped_responses"] for row in told] == SKIPPED
    for theirs, theirs_told in ranks:
        for name, weight in weights.items():
            assert_close(theirs[name], weight, atol=tolerance, rtol=0, msg=name)
        for found, expected in zip(theirs_told, told, strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_sharded_weights_are_those_of_one_process_that_reads_all():
    expected, _ = exactly("single", DOUBLE, None)
    same, told = exactly("single", DOUBLE, without_advantage)
    ranks = together(exactly, 2, "fsdp", DOUBLE, without_advantage, seconds=240)
    agrees([(same, told), *ranks], expected, told, 1e-10)


@pytest.mark.extended
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_leaves_them_out(backend, whole):
    _, told = learned("single", ACTOR, without_advantage)
    agrees(together(learned, 2, backend, ACTOR, without_advantage, seconds=240), whole, told, 1e-6)


@pytest.mark.extended
def test_a_team_that_computes_a_batch_together_leaves_them_out(whole):
    _, told = learned("single", ACTOR, without_advantage)
    agrees(together(learned, 2, "fsdp", ACTOR, without_advantage, 2, seconds=240), whole, told, 1e-6)
