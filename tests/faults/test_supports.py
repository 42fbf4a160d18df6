"""Runs that sample a part of the vocabulary and are stopped: what tokens were drawn among is saved with responses that wait, and the end is the same, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from lightrft.engines.native import NativeEngine
from tests.faults.small_runs import begin, go_on
from tests.faults.test_optimal_values import VALUES
from tests.faults.test_remembered import PARTIAL, REPLAY

SETTINGS = {
    "rollout.prompts_per_step": 4,
    "rollout.group_size": 4,
    "rollout.top_p": 0.9,
    "rollout.keep_sampling_mask": True,
    "algorithm.entropy_coefficient": 0.01,
    "update.num_minibatches": 2,
    "update.tokens_per_micro_batch": 64,
    **PARTIAL,
    "rollout.stop": list("abcdefg"),
    **{**REPLAY, "replay.groups_per_step": 2},
}
"""With responses that go on in the next step, and others that are learned from again."""


def test_a_resume_knows_what_tokens_of_responses_that_waited_were_drawn_among(tmp_path):
    whole = begin(tmp_path / "whole", 3, SETTINGS)
    begun = begin(tmp_path / "run", 2, SETTINGS)
    waiting = [t for group in begun.buffer.unfinished for t in group]
    assert waiting
    assert all(t.support is not None and len(t.support[0]) == len(t) for t in waiting)
    found = go_on(tmp_path / "run", 3, SETTINGS)
    weights = dict(found.actor.weights())
    assert all(torch.equal(weights[name], p) for name, p in whole.actor.weights())
    for step in (3,):
        assert any(t.origin == "replayed" for t in found.seen[step])
        for mine, theirs in zip(found.seen[step], whole.seen[step], strict=True):
            assert mine.token_ids == theirs.token_ids
            assert mine.support is not None
            assert theirs.support is not None
            assert all(torch.equal(a, b) for a, b in zip(mine.support, theirs.support, strict=True))


def test_engine_and_trainer_agree_about_a_part_of_the_vocabulary(tmp_path):
    """To rounding where the mask is kept, and by the log of what was left where it is not; the entropy is that of what was left."""
    settings = {"rollout.top_p": 0.5, "rollout.max_tokens": 6}
    kept = begin(tmp_path / "kept", 2, {**settings, "rollout.keep_sampling_mask": True}).told
    plain = begin(tmp_path / "plain", 2, settings).told
    for step in (1, 2):
        assert kept[step]["mismatch/max"] < 1e-4
        assert plain[step]["mismatch/mean_abs"] > 0.5
    # The same tokens in the first step, of distributions with at most half of the mass.
    assert kept[1]["entropy"] < plain[1]["entropy"] - 0.3
    assert math.isfinite(kept[2]["grad_norm"])


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"rollout.top_p": 0.5}, {"rollout.top_p": 0.5, "rollout.keep_sampling_mask": True}),
        ({"rollout.top_p": 0.5}, {}),
    ],
    ids=["kept from now on", "of all from now on"],
)
def test_what_was_sampled_from_a_part_before_a_resume_raises_no_alarm(tmp_path, caplog, before, now):
    """Of another temperature of the engine, say: responses that nobody knows the sampling mask of differ by the mass of what was left."""
    begin(tmp_path, 1, {**REPLAY, **before})
    found = go_on(tmp_path, 2, {**REPLAY, **now})
    assert any(t.origin == "replayed" for t in found.seen[2])
    assert found.told[2]["mismatch/max"] > 0.1
    assert "engine and trainer do not agree" not in caplog.text
    assert ("nobody knows what their tokens were drawn among" in caplog.text) == bool(now)


@pytest.mark.parametrize(
    "settings",
    [{"algorithm.advantage": "greedy_baseline"}, {**VALUES, "tasks.train_limit": 4}],
    ids=["greedy responses", "values of prompts"],
)
def test_responses_that_are_compared_with_need_not_say_what_they_were_drawn_among(
    tmp_path, monkeypatch, settings
):
    """Only those that are learned from."""
    asked, generate = [], NativeEngine.generate

    def noted(self, prompts, sampling, progress=None):
        asked.append(sampling)
        return generate(self, prompts, sampling, progress)

    monkeypatch.setattr(NativeEngine, "generate", noted)
    trainer = begin(tmp_path, 1, {"rollout.top_p": 0.9, "rollout.keep_sampling_mask": True, **settings})
    assert [sampling.support for sampling in asked].count(True) == 1
    assert len(asked) > 1
    assert all(t.support is not None for t in trainer.seen[1])
