"""A run whose rows are streamed goes on as one that never stopped, and learns from groups that waited."""

import json

import pytest

from tests.faults.small_runs import begin, go_on


@pytest.mark.parametrize("more", [{}, {"replay.groups_per_step": 1}], ids=["fresh", "replayed"])
def test_a_resumed_run_draws_the_same_prompts_and_ends_with_the_same_weights(tmp_path, more):
    (tmp_path / "reward.py").write_text("def size(answer, size):\n    return len(answer) / size\n")
    rows = [{"prompt": f"question {n}", "target": "x", "size": n + 1} for n in range(11)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "tasks.train": {"file": 1.0},
        "tasks.train_file": str(tmp_path / "rows.jsonl"),
        "tasks.train_limit": 0,
        "tasks.stream_block": 3,
        "rewards.functions": {f"{tmp_path}/reward.py:size": 1.0},
        **more,
    }
    whole = begin(tmp_path / "whole", 4, settings)
    begin(tmp_path / "cut", 2, settings)
    later = go_on(tmp_path / "cut", 4, settings)
    for step in (3, 4):
        assert [t.prompt.id for t in later.seen[step]] == [t.prompt.id for t in whole.seen[step]]
        assert [t.reward for t in later.seen[step]] == [t.reward for t in whole.seen[step]]
    assert {t.prompt.id for step in (1, 2, 3) for t in whole.seen[step]} == {
        f"file/rows.jsonl:{n}" for n in range(1, 12)
    }
    ours, theirs = (dict(one.actor.weights()) for one in (later, whole))
    assert all(weight.equal(theirs[name]) for name, weight in ours.items())
