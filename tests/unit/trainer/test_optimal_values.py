"""What is kept of the values of prompts, and what becomes of them when settings change."""

import math
from types import SimpleNamespace

import pytest

from lightrft.algorithms.algorithm import build
from lightrft.build.assemble import check_values
from lightrft.config import ReplayConfig
from lightrft.parallel.world import World
from lightrft.trainer.buffer import RolloutBuffer
from lightrft.trainer.optimal_values import OptimalValues, measured_with
from lightrft.types import Prompt, Trajectory
from lightrft.utils.imports import resolve
from tests.faults.small_runs import with_settings

BASE = {"algorithm.advantage": "optimal_value", "algorithm.value_samples": 3}


def values_of(settings, rewards=None):
    """Values of a run whose parts are not needed, with these rewards known."""
    found = OptimalValues(
        with_settings({**BASE, **settings}), SimpleNamespace(world=World.current()), None, None, None, None
    )
    found.rewards = {"task": rewards or {}}
    return found


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("algorithm.value_samples", 5),
        ("rewards.functions", {"length": 1.0}),
        ("rollout.temperature", 0.5),
        ("rollout.max_tokens", 7),
        ("rollout.stop", ["."]),
        ("environment.tools", ["calc"]),
    ],
)
def test_a_resume_of_what_has_learned_is_refused_with_other_settings_of_rewards_or_sampling(name, now):
    before, config = with_settings(BASE), with_settings({**BASE, name: now})
    kept = {"settings": measured_with(before), "asked": [3], "rewards": {}}
    state = {"done": 1, "parts": {"values": kept}}
    with pytest.raises(ValueError, match=f"^{name}=.*: the values of prompts were measured with {name}="):
        check_values(config, build(config.algorithm, resolve), state)
    check_values(before, build(before.algorithm, resolve), state)


def test_what_another_setting_measured_before_the_first_step_is_measured_anew(caplog):
    kept = {**values_of({}).state(), "asked": [4], "rewards": {"task": {"a": [1.0]}}}
    same, other = values_of({}), values_of({"rollout.temperature": 0.5})
    same.load(kept)
    assert (same.asked, same.rewards) == ([4], {"task": {"a": [1.0]}})
    with caplog.at_level("INFO", "lightrft"):
        other.load(kept)
    assert (other.asked, other.rewards) == ([0], {"task": {}})
    assert "values of 4 prompts are measured anew: rollout.temperature has changed" in caplog.text


def test_no_value_at_all_is_an_error_and_some_missing_ones_a_warning(caplog):
    none = values_of({})
    none.asked[0] = 2
    with pytest.raises(RuntimeError, match="the rewards failed for the responses to all 2 prompts"):
        none._need_some(2)
    assert none.asked == [0], "a resume measures"
    values_of({}, {"a": [1.0]})._need_some(3)
    assert "2 of 3 prompts have no value" in caplog.text


def judged(baseline):
    prompt = Prompt("a", [1], [], "", "task")
    return [Trajectory(prompt, 0, [2], [True], [0.0], "stop", "x", reward=1.0, baseline=baseline)]


@pytest.mark.parametrize(
    ("before", "now", "baseline"),
    [
        ("values", "greedy", None),
        ("greedy", "greedy", 0.25),
        ("values", "values", 2.0),
        ("greedy", "values", 2.0),
        ("", "values", 2.0),
    ],
)
def test_groups_to_be_learned_from_again_know_the_baseline_of_now_or_are_dropped(before, now, baseline):
    earlier = RolloutBuffer(ReplayConfig(groups_per_step=1), compared_with=before)
    earlier.add(1, [judged(0.25 if before else math.nan)])
    # The setting of now, and not that of the checkpoint, says how far rewards are clipped.
    refill = values_of({"algorithm.reward_clip": 2.0}, {"a": [9.0, 9.0]}).fill if now == "values" else None
    later = RolloutBuffer(ReplayConfig(groups_per_step=1), compared_with=now, refill=refill)
    later.load(earlier.packed(earlier.state()))
    assert [t.baseline for _, (t,) in later.replayable] == ([] if baseline is None else [baseline])
