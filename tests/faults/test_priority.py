"""Prioritized sampling: what a run draws is by what it measured, also after a stop."""

import torch

from tests.faults.small_runs import begin, go_on

SETTINGS = {"rollout.priority_floor": 0.1, "tasks.train_limit": 12}


def test_what_was_solved_is_drawn_less_often_and_a_resume_goes_on_alike(tmp_path):
    whole = begin(tmp_path / "whole", 9, SETTINGS)
    begin(tmp_path / "run", 5, SETTINGS)
    found = go_on(tmp_path / "run", 9, SETTINGS)
    weights = dict(found.actor.weights())
    assert all(torch.equal(weights[name], p) for name, p in whole.actor.weights())
    last = {}
    for step in range(1, 10):
        asked = {}
        for t in whole.seen[step]:
            asked.setdefault((t.prompt.source, t.prompt.id), []).append(t.reward)
        last |= {name: max(0.1, 1 - sum(rewards) / len(rewards)) for name, rewards in asked.items()}
        told = 1 - sum(1 - chance for chance in last.values()) / 12
        assert abs(whole.told[step]["rollout/priority"] - told) < 1e-9
    for step in range(6, 10):
        assert [t.prompt.id for t in found.seen[step]] == [t.prompt.id for t in whole.seen[step]]
    assert whole.told[9]["rollout/priority"] < 0.95
    other = go_on(tmp_path / "run", 10, {**SETTINGS, "rollout.priority_floor": 0.75})
    assert other.told[10]["rollout/priority"] >= 0.75, "the floor of now holds for what was judged before"
