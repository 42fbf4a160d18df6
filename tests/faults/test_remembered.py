"""Groups that outlive their step, and runs that go on with other settings: none is taken for another, lost, or taken for new."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from lightrft.build.assemble import check_unfinished
from lightrft.config import ReplayConfig, RolloutConfig
from lightrft.runs.reader import Run
from lightrft.testing import tiny_trajectories
from lightrft.trainer.buffer import RolloutBuffer, waiting_by_settings
from tests.distributed.conftest import lightrft, server
from tests.distributed.pair import ranks
from tests.faults.small_runs import SMALL, begin, go_on

__all__ = ["lightrft", "server"]
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


def saved_groups(folder):
    """(step, group) -> the prompt of each of its saved responses."""
    found = defaultdict(list)
    run = Run(folder)
    for step in run.steps:
        for row in run.responses(step):
            found[step, row["group"]].append(row["prompt_id"])
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


@pytest.mark.parametrize("settings", [REPLAY, DYNAMIC], ids=["replay", "carried_over"])
def test_judged_groups_without_a_greedy_response_are_dropped_with_a_word_and_never_learned_from(
    tmp_path, caplog, settings
):
    """Compared with nothing they taught NaN, and a greedy response of now would come from other weights."""
    begin(tmp_path, 2, settings)
    found = go_on(tmp_path, 4, {**settings, "algorithm.advantage": "greedy_baseline"})
    assert "dropped: they were judged without a greedy response" in caplog.text
    learned = [t for ts in found.seen.values() for t in ts if t.use == "trained"]
    assert learned
    assert all(t.weight_version >= 2 for t in learned)
    assert all(t.columns["advantages"].isfinite().all() for t in learned)
    assert all(p.isfinite().all() for _, p in found.actor.weights())


def test_groups_that_wait_keep_the_greedy_response_they_are_compared_with(tmp_path, caplog):
    settings = {**DYNAMIC, **REPLAY, "algorithm.advantage": "greedy_baseline"}
    begun = begin(tmp_path, 2, settings)
    before = {group[0].group: group[0].baseline for group in begun.buffer.carried_over}
    before |= {group[0].group: group[0].baseline for _, group in begun.buffer.replayable}
    assert before
    found = go_on(tmp_path, 3, settings)
    again = [t for t in found.seen[3] if t.origin != "sampled"]
    assert again
    assert {t.group: t.baseline for t in again}.items() <= before.items()
    assert "dropped" not in caplog.text


def test_an_engine_that_would_miss_a_stop_text_across_the_resume_refuses_what_is_to_go_on(tmp_path):
    begin(tmp_path, 2, PARTIAL)
    other = {"rollout.engine": "vllm", "rollout.max_tokens_per_step": 0}
    with pytest.raises(ValueError, match=r"rollout\.engine=vllm: the checkpoint holds .*rollout\.stop="):
        go_on(tmp_path, 3, {**UNEVEN, **other})
    check_unfinished(RolloutConfig(engine="vllm"), {"unfinished"})  # no text to miss
    check_unfinished(RolloutConfig(engine="vllm", stop=["a"]), {"prefetched"})  # none that is to go on


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


def remembering(numbers, cost=""):
    """The packed memory of a rank that remembers groups of these numbers, each of two answers, in every way there is."""
    memory = RolloutBuffer(ReplayConfig(groups_per_step=4), cost=cost)
    for place, number in enumerate(numbers):
        group = [replace(t, group=number) for t in tiny_trajectories([(2, [1, 2])], seed=number)]
        (memory.prefetched, memory.unfinished, memory.carried_over)[place % 3].append(group)
        memory.add(place, [[replace(t, group=100 + number) for t in group]])
    memory.asked = 5
    return memory.packed(memory.state())


def numbers_of(groups):
    return [t.group for group in groups for t in group[:1]]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_another_number_of_processes_shares_out_what_was_remembered(size, caplog):
    ranks = [remembering(range(rank, 18, 3)) for rank in range(3)]
    shares = []
    for rank in range(size):
        shares.append(RolloutBuffer(ReplayConfig(groups_per_step=4), size))
        shares[-1].share(ranks, rank, size)
    for name in ("prefetched", "unfinished", "carried_over"):
        every = sorted(n for one in shares for n in numbers_of(getattr(one, name)))
        assert len(every) == 6
        for rank, one in enumerate(shares):
            assert numbers_of(getattr(one, name)) == every[rank::size], "as these ranks would have drawn them"
    again = [group for one in shares for _, group in one.replayable]
    assert sorted(numbers_of(again)) == list(range(100, 118))
    assert all(len(group) == 2 for group in again)
    assert [one.asked for one in shares] == [5] * size
    (told,) = [r.getMessage() for r in caplog.records if "processes" in r.getMessage()]
    assert f"{size} instead of 3: 18 groups that wait" in told


def test_what_was_judged_without_a_cost_is_dropped_with_a_word_and_the_rest_kept(caplog):
    memory = RolloutBuffer(ReplayConfig(groups_per_step=4), cost="length")
    memory.load(remembering(range(6)))
    assert (numbers_of(memory.prefetched), numbers_of(memory.unfinished)) == ([0, 3], [1, 4])
    assert memory.carried_over == memory.replayable == []
    assert "2 groups that wait to be learned from and 6 of earlier steps are dropped" in caplog.text
    assert "length" in caplog.text


@pytest.mark.timeout(120)
def test_one_process_goes_on_with_what_two_have_drawn(lightrft, tmp_path, caplog):
    flags = [
        *("--rewards.workers", "1", "--rollout.overlap-rewards", "true", "--steps", "3"),
        *("--checkpoint.every-steps", "1", "--strategy.backend", "fsdp", "--strategy.device", "cpu"),
    ]
    done = [rank.wait() for rank in ranks(lightrft, "train", *SMALL, *flags, "--run", "run")]
    assert [d.status for d in done] == [0, 0], done[0].output + done[1].output
    for file in (tmp_path / "run" / "checkpoints").glob("step-000003*"):
        shutil.rmtree(file)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = go_on(tmp_path / "run", 3, OVERLAP)
    assert sorted({t.group for t in found.seen[3]}) == [8, 9, 10, 11], "the third four prompts of the run"
    assert all(t.stale for t in found.seen[3])
    for name in ("ratio/mean", "reward/mean", "approx_kl"):
        assert found.told[3][name] == pytest.approx(rows[2][name], abs=1e-4)
    assert "1 instead of 2: 4 groups that wait" in caplog.text


def test_what_was_sampled_from_a_part_is_known_for_as_long_as_it_waits():
    """Also after a resume with other settings that let it wait, and a checkpoint of theirs."""
    options, (one, other) = (
        ReplayConfig(groups_per_step=2, max_age=9),
        tiny_trajectories([(3, [2]), (3, [4])]),
    )
    by = [{"is_another_program": False, "samples_from_a_part": part} for part in (True, False)]
    first, second = (RolloutBuffer(options, sampled_at=now) for now in by)
    first.add(1, [[one]])
    second.load(first.packed(first.state()))
    second.add(2, [[other]])
    third = RolloutBuffer(options, sampled_at=by[1])
    third.load(second.packed(second.state()))
    for buffer in (second, third):
        assert list(waiting_by_settings(buffer.packed(buffer.state()), 0)) == [(by[0], 0, 1), (by[1], 0, 1)]
    third.replayable = third.replayable[1:]
    assert list(waiting_by_settings(third.packed(third.state()), 0)) == [(by[1], 0, 1)]
