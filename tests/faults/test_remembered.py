"""Groups that outlive their step, and runs that go on with other settings: none is taken for another, lost, or taken for new."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from lightrft.build.rl import build_run
from lightrft.config import Config, layers
from lightrft.trainer.rl import RLTrainer

SMALL = [
    *("tiny", "grpo", "--evaluate.before-and-after", "false", "--log.tensorboard", "false"),
    *("--log.progress", "false", "--checkpoint.every-steps", "0", "--rewards.workers", "0"),
    *("--steps", "9", "--optimizer.learning-rate", "0.02", "--tasks.train-limit", "100"),
]
OVERLAP = {"rollout.overlap_rewards": True, "rewards.workers": 1}
UNEVEN = {"rollout.stop": list("abcdefghijklmnopqrstuvwxyz"), "rollout.max_tokens": 12}
"""Some answers end early, some late."""
PARTIAL = {**UNEVEN, "rollout.max_tokens_per_step": 3}
REPLAY = {"replay.groups_per_step": 4, "replay.max_age": 9}
DYNAMIC = {
    "algorithm.group_filter": "mixed_outcomes",
    "rollout.max_sampling_rounds": 3,
    "rollout.extra_groups": "carry_over",
}


@functools.cache
def base():
    return layers.load(SMALL, Config)


def with_settings(settings):
    """The small run with other settings, set together: some are refused without others."""
    parts = defaultdict(dict)
    for name, value in settings.items():
        section, field = name.split(".")
        parts[section][field] = value
    return replace(
        base(), **{name: replace(getattr(base(), name), **fields) for name, fields in parts.items()}
    )


class Looking(RLTrainer):
    """Remembers what was learned from in each step."""

    def record(self, step, metrics, trajectories):
        self.seen = {**getattr(self, "seen", {}), step: trajectories}
        self.told = {**getattr(self, "told", {}), step: metrics}
        super().record(step, metrics, trajectories)


def go_on(folder, until, settings, *, resume=True):
    """Takes the steps of a run up to one, and saves it; its trainer, which knows what it learned from."""
    with contextlib.ExitStack() as stack:
        run = build_run(with_settings(settings), folder, stack, started=time.perf_counter(), resume=resume)
        run.trainer.__class__ = Looking
        run.begin()
        for step in range(run.done + 1, until + 1):
            run.take(step)
        run.save_now()
        return run.trainer


def begin(folder, until, settings):
    return go_on(folder, until, settings, resume=False)


def saved_groups(folder):
    """(step, group) -> the prompt of each of its saved responses."""
    found = defaultdict(list)
    for file in sorted(folder.glob("trajectories/*.jsonl")):
        for line in filter(None, file.read_text(encoding="utf-8").split("\n")):
            row = json.loads(line)
            found[row["step"], row["group"]].append(row["prompt_id"])
    return found


def assert_no_group_is_taken_for_another(folder, *trainers):
    prompts = {}
    for (step, group), ids in saved_groups(folder).items():
        assert len(set(ids)) == 1, f"step {step}, group {group} compares responses to {set(ids)}"
        assert len(ids) <= 4, f"step {step}, group {group} has {len(ids)} responses"
        assert prompts.setdefault(group, ids[0]) == ids[0], f"group {group} names two draws"
    owners = {}
    for t in (t for trainer in trainers for ts in trainer.seen.values() for t in ts):
        assert owners.setdefault(t.stream, t.group) == t.group, "two groups drew from one random stream"


CHANGES = [
    {"rollout.prompts_per_step": 2},
    {"rollout.max_sampling_rounds": 2},
    {"rollout.overlap_rewards": False},
    {"rollout.max_tokens_per_step": 0},
]


@pytest.mark.parametrize("replay", [{}, REPLAY], ids=["", "replay"])
@pytest.mark.parametrize("partial", [{}, PARTIAL], ids=["", "partial"])
@pytest.mark.parametrize("overlap", [{}, OVERLAP], ids=["", "overlap"])
def test_no_group_has_two_prompts_whatever_waits_and_whatever_a_resume_changes(
    tmp_path, overlap, partial, replay
):
    settings = {**overlap, **partial, **replay}
    begun = begin(tmp_path / "run", 4, settings)
    assert_no_group_is_taken_for_another(tmp_path / "run", begun)
    for n, change in enumerate(CHANGES):
        if (OVERLAP | PARTIAL).keys() & change.keys() - settings.keys():
            continue  # it is off already
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "run", folder)
        later = go_on(folder, 6, {**settings, **change})
        assert_no_group_is_taken_for_another(folder, begun, later)


def test_no_group_has_two_prompts_where_more_are_drawn_than_a_step_learns_from(tmp_path):
    settings = {**DYNAMIC, **OVERLAP, **PARTIAL, **REPLAY}
    begun = begin(tmp_path, 4, settings)
    later = go_on(tmp_path, 7, {**settings, "rollout.max_sampling_rounds": 2})
    assert_no_group_is_taken_for_another(tmp_path, begun, later)


def test_what_was_drawn_ahead_is_learned_from_as_old_also_where_nothing_is_drawn_ahead_any_more(tmp_path):
    begin(tmp_path / "run", 2, OVERLAP)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    right, found = (
        go_on(tmp_path / name, 3, settings) for name, settings in (("run", OVERLAP), ("other", {}))
    )
    assert found.told[3]["ratio/mean"] == right.told[3]["ratio/mean"] != pytest.approx(1.0, abs=1e-3)
    assert found.told[3]["rollout/off_policy_fraction"] == 1.0
    measured = ("loss", "grad_norm", "approx_kl", "clip/fraction", "mismatch/mean_abs", "mismatch/max")
    assert [found.told[3][name] for name in measured] == [right.told[3][name] for name in measured]
    weights = dict(right.actor.weights())
    assert all(p.equal(weights[name]) for name, p in found.actor.weights())


def test_tokens_of_older_weights_stay_old_where_no_answer_is_cut_any_more(tmp_path):
    begin(tmp_path, 2, PARTIAL)
    found = go_on(tmp_path, 3, UNEVEN)
    late = [t for t in found.seen[3] if t.stale]
    assert late
    assert found.told[3]["ratio/mean"] != pytest.approx(1.0, abs=1e-3)
    assert found.told[3]["mismatch/max"] < 1e-3, "engine and trainer are not blamed for it"
    for t in late:
        old, behavior = t.columns["old"], torch.tensor(t.behavior)
        assert torch.equal(old[: t.stale], behavior[: t.stale])
        torch.testing.assert_close(old[t.stale :], behavior[t.stale :], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "change", "told"),
    [
        (PARTIAL, {"algorithm.loss": "policy_gradient"}, r"\(unfinished\).*algorithm.loss=policy_gradient"),
        (
            OVERLAP,
            {"algorithm.loss": "policy_gradient"},
            r"\(prefetched\).*Resume with algorithm.loss=clipped",
        ),
        (OVERLAP, {"algorithm.advantage": "greedy_baseline"}, "algorithm.advantage=greedy_baseline"),
    ],
)
def test_an_algorithm_that_cannot_learn_from_what_is_remembered_refuses_it(tmp_path, settings, change, told):
    """As the settings refuse to remember anything for it."""
    begin(tmp_path, 2, settings)
    with pytest.raises(ValueError, match=told):
        go_on(tmp_path, 3, change)


def test_no_answer_gets_another_token_beyond_a_limit_that_was_lowered(tmp_path):
    begun = begin(tmp_path, 2, {**PARTIAL, "rollout.max_tokens_per_step": 5})
    before = {t.stream: t for group in begun.buffer.unfinished for t in group}
    over = {stream for stream, t in before.items() if len(t) > 7}
    assert over
    found = go_on(tmp_path, 4, {**PARTIAL, "rollout.max_tokens_per_step": 2, "rollout.max_tokens": 7})
    came = {t.stream: t for ts in found.seen.values() for t in ts}
    assert came.keys() >= before.keys()
    for stream, t in came.items():
        tokens = before[stream].token_ids if stream in before else []
        assert t.token_ids[: len(tokens)] == tokens
        assert len(t) <= max(7, len(tokens))
    assert {came[stream].finish for stream in over if before[stream].finish == "paused"} == {"length"}
