"""What a run that keeps the sampling mask needs, and what an engine of a user must tell."""

from __future__ import annotations

import tracemalloc

import pytest
import torch

from lightrft.config import RolloutConfig
from lightrft.engines.base import EngineError
from lightrft.models.supports import Among, Growing, packed, repeated
from lightrft.testing import tiny_processor, tiny_prompt, tiny_trajectories
from lightrft.trainer.rollout import rollout, training_sampling
from lightrft.types import Completion


@pytest.mark.parametrize("engine", ["vllm", "vllm_server", "sglang", "lmdeploy", "denoise", "unmask"])
def test_an_engine_that_does_not_tell_is_refused(engine):
    told = rf"rollout.keep_sampling_mask=true with rollout.engine={engine}: .*\(native does\)\. Set rollout.engine=native, or"
    with pytest.raises(ValueError, match=told):
        RolloutConfig(engine=engine, top_p=0.9, keep_sampling_mask=True)
    assert training_sampling(RolloutConfig(top_p=0.9, keep_sampling_mask=True), 0).support
    assert RolloutConfig(engine="mine.py:Engine", top_k=4, keep_sampling_mask=True).keep_sampling_mask


def test_it_is_refused_where_sampling_leaves_all():
    with pytest.raises(
        ValueError, match="rollout.keep_sampling_mask=true has no effect where all tokens may be"
    ):
        RolloutConfig(keep_sampling_mask=True)


@pytest.mark.parametrize("option", [{"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"first_token_top_k": 2}])
def test_engine_and_trainer_are_meant_to_agree_where_the_mask_is_kept(option):
    assert RolloutConfig(**option).samples_from_a_part
    assert not RolloutConfig(**option, keep_sampling_mask=True).samples_from_a_part


class Silent:
    """An engine of a user that tells what it is given to tell."""

    weight_version = 0

    def __init__(self, support):
        self.support = support

    def generate(self, prompts, sampling, progress=None):  # as every engine
        return [
            [Completion([4, 5], [-1.0, -1.0], "stop", support=self.support)] * sampling.n for _ in prompts
        ]


@pytest.mark.parametrize(
    ("support", "told"),
    [
        (None, "no support"),
        ((torch.tensor([1, 1]), torch.tensor([4, 6])), "1 tokens that are not in their own support"),
        ((torch.tensor([0, 1]), torch.tensor([5])), "no ids for 1 tokens"),
    ],
)
def test_an_engine_of_a_user_that_tells_something_else_is_named(support, told):
    sampling = training_sampling(RolloutConfig(group_size=2, top_p=0.9, keep_sampling_mask=True), 0)
    with pytest.raises(EngineError, match=f"Silent gave {told}"):
        rollout(Silent(support), [tiny_prompt(3)], sampling, tiny_processor())


def test_a_response_on_its_way_takes_four_bytes_for_an_id():
    """And four for a token: of 2000 tokens of 8 ids 72 kB, with what lists of numbers grow by ahead."""
    ids, known = torch.arange(8, dtype=torch.int32), Growing()
    tracemalloc.start()
    for _ in range(2000):
        known.add(ids[:8])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1.25 * 36 * 2000
    counts, found = known.so_far()
    assert counts.tolist() == [8] * 2000
    assert torch.equal(found, ids.repeat(2000))


def test_responses_that_are_made_up_of_others_have_their_supports():
    responses = tiny_trajectories([(3, [2, 1])])
    assert repeated(responses, 4) is None
    responses[0].support = torch.tensor([1, 2], dtype=torch.int32), torch.tensor([9, 7, 8], dtype=torch.int32)
    counts, ids = repeated(responses, 5)
    assert (counts.tolist(), ids.tolist()) == ([1, 2, 0, 1, 2], [9, 7, 8, 9, 7, 8])


def test_rows_of_other_ranks_leave_nothing_out():
    first, second = tiny_trajectories([(3, [2, 2])])
    first.support = torch.tensor([2, 0], dtype=torch.int32), torch.tensor([1, 6], dtype=torch.int32)
    second.support = torch.tensor([1], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    support = packed([first, second])
    assert support.tolist() == [[0, 0, 2], [1, 6, 3]]
    whole = Among.of(support, None, 4)
    assert (~whole.left_out(slice(0, 4))).int().tolist() == [[0, 1, 0, 0], [1] * 4, [0, 0, 0, 1], [1] * 4]
    assert (~whole.left_out(slice(4, 8))).int().tolist() == [[0, 0, 1, 0], [1] * 4, [0] * 4, [1] * 4]
    share = Among.of(support, torch.tensor([1, 2]), 4)
    assert (~share.left_out(slice(0, 4))).int().tolist() == [[1] * 4, [0, 0, 0, 1]]
    assert packed(tiny_trajectories([(3, [2, 2])])) is None
