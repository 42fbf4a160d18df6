"""Settings that are each tested alone, together: a seeded sweep over combinations, each run on with one of them changed.

`make sweep` tries 300 combinations, and 60 in two processes; the suite tries the first 24, and 2 in two processes. A combination
either runs and keeps every promise below, or is refused before its first step by an error that names the settings.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest
import torch

from lightrft.runs import trajectories
from lightrft.runs.layout import RunFolder
from lightrft.types import Trajectory
from tests.distributed.launch import together
from tests.faults.small_runs import begin, go_on

CASES = int(os.environ.get("LIGHTRFT_SWEEP", "24"))
PAIRS = 2 if CASES == 24 else CASES // 5
UNEVEN = {"rollout.stop": list("abcdefghijklmnopqrstuvwxyz"), "rollout.max_tokens": 12}
FEATURES = {
    "overlap": {"rollout.overlap_rewards": True, "rewards.workers": 1},
    "partial": {"rollout.max_tokens_per_step": 3},
    "dynamic": {"algorithm.group_filter": "mixed_outcomes", "rollout.max_sampling_rounds": 3},
    "carry_over": {
        "algorithm.group_filter": "mixed_outcomes",
        "rollout.max_sampling_rounds": 3,
        "rollout.extra_groups": "carry_over",
    },
    "replay": {"replay.groups_per_step": 2, "replay.max_age": 2},
    "best_random": {"algorithm.response_filter": "best_random"},
    "greedy_baseline": {
        "algorithm.advantage": "greedy_baseline",
        "algorithm.kl": "k1",
        "algorithm.kl_in": "reward",
    },
    "leave_one_out": {"algorithm.advantage": "leave_one_out"},
    "critic": {"algorithm.advantage": "gae", "critic.warmup_steps": 1},
    "constraint": {"constraint.cost": "length", "constraint.limit": 0.1},
    "lora": {"model.lora.rank": 2},
    "no_kl": {"algorithm.kl_coefficient": 0.0},
    "kl_in_reward": {"algorithm.kl_in": "reward", "algorithm.kl": "k1"},
    "following": {"algorithm.reference_update_steps": 2, "algorithm.reference_update_rate": 0.5},
    "adaptive_kl": {"algorithm.kl_target": 0.01},
    "mixture": {"tasks.train": {"tiny": 1.0, "demo": 0.5}},
    "minibatches": {"update.num_minibatches": 2, "update.epochs": 2},
    "masked": {"algorithm.truncated": "mask"},
    "overlong": {"algorithm.overlong_buffer": 3, "algorithm.overlong_penalty": 0.5},
    "scaled": {"rewards.normalise": "shift_and_scale"},
    "mismatch": {"algorithm.mismatch_correction": "truncate"},
    "entropy": {"algorithm.high_entropy_fraction": 0.5},
    "cold": {"rollout.temperature": 0.7, "rollout.top_k": 50},
    "first_hot": {"rollout.first_token_temperature": 2.0, "rollout.first_token_top_k": 8},
    "mask": {"rollout.top_p": 0.9, "rollout.keep_sampling_mask": True},
    "prioritized": {"rollout.priority_floor": 0.3},
    "micro": {"update.tokens_per_micro_batch": 64, "update.share_prompts": False},
}
CHANGES = [
    {"rollout.prompts_per_step": 2},
    {"rollout.group_size": 2},
    {"rollout.max_tokens": 8},
    {"optimizer.learning_rate": 0.01},
    {"algorithm.kl_coefficient": 0.1},
]
REFUSED = re.compile(r"\b[a-z_]+\.[a-z_]+(\.[a-z_]+)?\b")


def drawn(case: int) -> tuple[dict, dict]:
    """The settings of a case: two to six features together; and what its resume changes: a feature more or less, or a number."""
    draw = random.Random(case)
    names = draw.sample(sorted(FEATURES), draw.randint(2, 6))
    settings = {**UNEVEN, **{k: v for name in names for k, v in FEATURES[name].items()}}
    turn = draw.choice([*names, *sorted(FEATURES), *range(len(CHANGES))])
    if isinstance(turn, int):
        return settings, {**settings, **CHANGES[turn]}
    if turn in names:
        left = [name for name in names if name != turn]
        return settings, {**UNEVEN, **{k: v for name in left for k, v in FEATURES[name].items()}}
    return settings, {**settings, **FEATURES[turn]}


@dataclass(frozen=True)
class Part:
    """What a run did from its begin, or its resume, to where it was left."""

    settings: dict
    seen: dict[int, list[Trajectory]]
    """Step -> what it learned from, and what it did not."""
    remembered: set[int]
    """Groups that wait, not judged yet, when it is left."""
    places: int
    """Places of the data gone through so far."""
    asked: int
    """Prompts drawn so far; fewer where a pass leaves some out."""
    log: str


@pytest.mark.parametrize("case", range(CASES))
def test_a_combination_keeps_every_promise_or_is_refused_by_name(tmp_path, case):
    settings, changed = drawn(case)
    first = part(begin, tmp_path, 3, settings)
    if first is None:
        assert not RunFolder(tmp_path).has_steps
        return
    promises(tmp_path, [first])
    later = part(go_on, tmp_path, 5, changed)
    if later is not None:
        promises(tmp_path, [first, later])


@pytest.mark.parametrize("case", range(PAIRS))
def test_a_combination_keeps_every_promise_in_two_processes_or_is_refused_by_name(tmp_path, case):
    """Both parts of the run in two processes, or one of the parts in one."""
    settings, changed = (with_ranks(chosen, case) for chosen in drawn(1000 + case))
    before, after = random.Random(case).choice([(2, 2), (2, 2), (2, 1), (1, 2)])
    first = whole(together(part, before, begin, tmp_path, 3, settings))
    if first is None:
        assert not RunFolder(tmp_path).has_steps
        return
    promises(tmp_path, [first])
    later = whole(together(part, after, go_on, tmp_path, 5, changed))
    if later is not None:
        promises(tmp_path, [first, later])


def with_ranks(settings, case):
    """The settings for several processes; in every fourth case both compute each micro-batch together."""
    teams = {"strategy.sequence_parallel": 2} if case % 4 == 3 else {}
    return {**settings, "strategy.backend": "fsdp", "strategy.device": "cpu", **teams}


def part(call, folder, until, settings):
    """What this process saw of a part of a run; None if its settings are refused, by an error that names one."""
    told = Told()
    logging.getLogger("lightrft").addHandler(told)
    refusal = ""
    try:
        trainer = call(folder, until, settings)
    except ValueError as error:
        refusal = str(error)
    finally:
        logging.getLogger("lightrft").removeHandler(told)
    if refusal:
        assert REFUSED.search(refusal), f"{settings}: the refusal names no setting: {refusal}"
        return None
    waiting = [*trainer.buffer.prefetched, *trainer.buffer.unfinished]
    remembered = {t.group for group in waiting for t in group}
    prompts, lines = trainer.parts["prompts"], "\n".join(told.lines)
    return Part(settings, trainer.seen, remembered, prompts.position, sum(prompts.given), lines)


def whole(ranks):
    """What all ranks saw of a part; None if all refused it."""
    if None in ranks:
        assert ranks == [None] * len(ranks), "some ranks refused the settings and others did not"
        return None
    seen = {step: [t for rank in ranks for t in rank.seen[step]] for step in ranks[0].seen}
    places, asked = ranks[0].places, ranks[0].asked
    assert all(rank.seen.keys() == seen.keys() for rank in ranks)
    assert all((rank.places, rank.asked) == (places, asked) for rank in ranks)
    remembered = set().union(*(rank.remembered for rank in ranks))
    return Part(ranks[0].settings, seen, remembered, places, asked, "\n".join(rank.log for rank in ranks))


class Told(logging.Handler):
    """Lines of a log."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def promises(folder, parts):
    """What holds of every run, whatever its settings."""
    rows = {step: trajectories.load(folder, step) for step in RunFolder(folder).saved_steps}
    one_prompt_in_a_group(rows, parts)
    nothing_is_lost_or_learned_twice(rows, parts)
    metrics_are_those_of_the_saved_responses(folder, rows)
    for each in parts:
        for ts in each.seen.values():
            trained = [t for t in ts if t.use in ("trained", "masked")]
            old_is_what_was_sampled(trained, parts)
            equal_rewards_teach_nothing(trained, each.settings)
            for t in trained:
                assert all(torch.isfinite(column).all() for column in t.columns.values())


def one_prompt_in_a_group(rows, parts):
    prompts = {}
    for step, found in rows.items():
        sizes = Counter(row["group"] for row in found)
        largest = max(settings.get("rollout.group_size", 4) for settings in (each.settings for each in parts))
        assert max(sizes.values()) <= largest, f"step {step}: {sizes}"
        for row in found:
            assert prompts.setdefault(row["group"], row["prompt_id"]) == row["prompt_id"]
    owners = {}
    for t in (t for each in parts for ts in each.seen.values() for t in ts):
        assert owners.setdefault(t.stream, t.group) == t.group, "two groups share a random stream"


def nothing_is_lost_or_learned_twice(rows, parts):
    """Each group is sampled into one step, waits at most for the next one, and comes back only by replay."""
    log = "\n".join(each.log for each in parts)
    came = defaultdict(list)
    for step, found in rows.items():
        for group in {row["group"] for row in found}:
            members = [row for row in found if row["group"] == group]
            (origin,) = {row["origin"] for row in members}
            came[group].append((step, origin, {row["use"] for row in members}))
    last = max(rows)
    for group, times in came.items():
        assert [origin for _, origin, _ in times].count("sampled") == 1, f"group {group}: {times}"
        assert times[0][1] == "sampled"
        for (step, _, uses), (following, origin, _) in itertools.pairwise(times):
            if "waiting" in uses:
                assert (following, origin) == (step + 1, "carried_over"), f"group {group}: {times}"
            else:
                assert origin == "replayed", f"group {group}: {times}"
                assert uses & {"trained", "masked", "unselected"}, f"group {group}: {times}"
        if "waiting" in times[-1][2]:
            assert times[-1][0] == last or "dropped" in log, f"group {group} waits for ever: {times}"
    places, known = set(range(parts[-1].places)), came.keys() | parts[-1].remembered
    assert known <= places
    skips = any("rollout.priority_floor" in each.settings for each in parts)
    assert len(known) == parts[-1].asked or "dropped" in log, f"lost: {sorted(places - known)}"
    assert skips or parts[-1].asked == len(places)


def metrics_are_those_of_the_saved_responses(folder, rows):
    told = {row["step"]: row for row in map(json.loads, RunFolder(folder).metrics.read_text().splitlines())}
    for step, found in rows.items():
        new = [row for row in found if row["origin"] == "sampled" and row["use"] != "failed"]
        assert told[step]["counts/responses"] == len(new)
        if not new:
            continue
        rewards, lengths = ([row[name] for row in new] for name in ("reward", "length"))
        assert told[step]["reward/mean"] == pytest.approx(sum(rewards) / len(new), abs=1e-4)
        assert told[step]["length/mean"] == pytest.approx(sum(lengths) / len(new), abs=1e-6)
        assert told[step]["length/max"] == max(lengths)
        for name in {name for row in new for name in row["parts"]}:
            values = [row["parts"][name] for row in new if name in row["parts"]]
            assert told[step][f"reward/{name}"] == pytest.approx(sum(values) / len(values), abs=1e-4)


def old_is_what_was_sampled(trained, parts):
    """The log-prob that the ratio divides by is the one at sampling, up to rounding and what a restricted draw leaves out."""
    restrictions = {"rollout.top_k", "rollout.first_token_top_k"}
    if any(
        restrictions & s.keys() and "rollout.keep_sampling_mask" not in s for s in (p.settings for p in parts)
    ):
        return  # behaviour is that of the restricted distribution, also of what an earlier part has left
    for t in (t for t in trained if "old" in t.columns):
        mask = torch.tensor(t.mask)
        torch.testing.assert_close(
            t.columns["old"][mask], torch.tensor(t.behavior)[mask].float(), atol=2e-3, rtol=0
        )


def equal_rewards_teach_nothing(trained, settings):
    """Where siblings are compared and nothing else pays, a group of equal rewards has advantage 0."""
    compares = settings.get("algorithm.advantage", "group_norm") in ("group_norm", "leave_one_out")
    if not compares or settings.get("algorithm.kl_in") == "reward" or settings.get("constraint.cost"):
        return
    groups = defaultdict(list)
    for t in trained:
        groups[t.group].append(t)
    filtered = "algorithm.response_filter" in settings
    for members in groups.values():
        if len({t.reward for t in members}) == 1 and not filtered:
            assert all(float(t.columns["advantages"].abs().max()) < 1e-6 for t in members if len(t))
