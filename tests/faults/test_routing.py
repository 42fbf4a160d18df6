"""Runs of a mixture of experts that are stopped: what routers chose is saved with the responses that wait, and the end is the same, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.faults.small_runs import begin, go_on
from tests.faults.test_remembered import PARTIAL, REPLAY

EXPERTS = {
    "model.path": "random:qwen3_moe",
    "algorithm.router_aux_coefficient": 0.1,
    "rollout.prompts_per_step": 2,
    "rollout.group_size": 2,
    "update.num_minibatches": 2,
    **PARTIAL,
    **{**REPLAY, "replay.groups_per_step": 2},
}
"""With responses that go on in the next step, and others that are learned from again."""


@pytest.mark.parametrize("replay", ["sampling", "old"])
def test_a_resume_replays_the_experts_of_responses_that_waited(tmp_path, replay):
    settings = {**EXPERTS, "rollout.routing_replay": replay}
    whole = begin(tmp_path / "whole", 4, settings)
    begun = begin(tmp_path / "run", 2, settings)
    waiting = [t for group in begun.buffer.unfinished for t in group]
    assert waiting
    assert replay == "old" or all(t.experts is not None for t in waiting)
    found = go_on(tmp_path / "run", 4, settings)
    weights = dict(found.actor.weights())
    assert all(torch.equal(weights[name], p) for name, p in whole.actor.weights())
    for step in (3, 4):
        assert any(t.origin == "replayed" for t in found.seen[step])
        router = {name for name in whole.told[step] if name.startswith("router/")}
        assert {"router/aux_loss", "router/replayed", "router/replay_changed"} <= router
        assert all(found.told[step][name] == whole.told[step][name] for name in router)
        for mine, theirs in zip(found.seen[step], whole.seen[step], strict=True):
            assert mine.token_ids == theirs.token_ids
            assert (mine.experts is None) == (theirs.experts is None)
            assert mine.experts is None or torch.equal(mine.experts, theirs.experts)
    assert found.told[3]["router/replayed"] > 0.5
