import random
from dataclasses import replace

import numpy
import pytest
import torch

from lightrft.config import ReplayConfig
from lightrft.datasets.loader import PromptLoader
from lightrft.testing import tiny_trajectories
from lightrft.trainer.buffer import RolloutBuffer, waiting_by_settings
from lightrft.types import Prompt
from lightrft.utils.states import read_state, write_state


def groups_of(step, count=3):
    groups = [[] for _ in range(count)]
    for t in tiny_trajectories([(2, [1, 2])] * count, seed=step):
        t.baseline = 0.5  # NaN equals nothing
        groups[t.group].append(t)
    return groups


def remembering(config, steps):
    memory = RolloutBuffer(config)
    for step in range(1, steps + 1):
        memory.add(step, groups_of(step))
    return memory


def test_groups_come_again_at_random_none_twice_and_none_too_old():
    memory = remembering(ReplayConfig(groups_per_step=2, max_age=2), steps=4)
    young = [group for born, group in memory.replayable if born >= 3]
    seen = set()
    for seed in range(40):
        taken = memory.sample(5, random.Random(seed))
        assert len(taken) == 2
        places = [young.index(group) for group in taken]
        assert places == sorted(set(places))
        seen |= set(places)
    assert seen == set(range(6))


def test_there_are_fewer_at_the_start():
    memory = RolloutBuffer(ReplayConfig(groups_per_step=5))
    assert memory.sample(1, random.Random(0)) == []
    memory.add(1, groups_of(1))
    assert len(memory.sample(2, random.Random(0))) == 3


def test_without_replay_nothing_is_remembered():
    assert remembering(ReplayConfig(), steps=3).replayable == []


def test_what_waits_waits_for_one_step():
    memory = RolloutBuffer(ReplayConfig())
    memory.carried_over = groups_of(1)
    assert len(memory.take_carried_over()) == 3
    assert memory.take_carried_over() == []


def test_a_snapshot_is_not_changed_by_later_steps_and_comes_back_whole(tmp_path):
    memory = remembering(ReplayConfig(groups_per_step=1, max_age=9), steps=2)
    memory.carried_over = groups_of(7, count=2)
    snapshot = memory.state()
    memory.take_carried_over()
    memory.add(3, groups_of(3))
    write_state(tmp_path / "state.pt", memory.packed(snapshot))
    again = RolloutBuffer(ReplayConfig(groups_per_step=1, max_age=9))
    again.load(read_state(tmp_path / "state.pt"))
    assert again.carried_over == groups_of(7, count=2)
    assert again.replayable == [(step, group) for step in (1, 2) for group in groups_of(step)]
    assert again.carried_over[0][0].prompt is again.carried_over[0][1].prompt, (
        "siblings go on sharing their prompt"
    )


def test_groups_of_an_earlier_engine_are_told_apart_after_any_number_of_resumes(tmp_path):
    """What they were sampled with is theirs, not that of the run that wrote the last checkpoint."""
    config = ReplayConfig(groups_per_step=1, max_age=9)
    first, second, third = ({"temperature": t, "is_another_program": t > 1} for t in (1.0, 1.5, 2.0))
    memory = RolloutBuffer(config, sampled_at=first)
    memory.carried_over = groups_of(9, count=2)
    for step, settings in ((1, second), (2, third)):
        write_state(tmp_path / "state.pt", memory.packed(memory.state()))
        memory = RolloutBuffer(config, sampled_at=settings)
        memory.load(read_state(tmp_path / "state.pt"))
        memory.add(step, numbered(groups_of(step), 10 * step))
    packed = memory.packed(memory.state())
    assert list(waiting_by_settings(packed, 1)) == [(first, 2, 0), (second, 0, 3), (third, 0, 3)]
    assert list(waiting_by_settings(packed, 2)) == [(first, 2, 0), (second, 0, 0), (third, 0, 3)]
    memory.take_carried_over()
    assert list(waiting_by_settings(memory.packed(memory.state()), 1)) == [(second, 0, 3), (third, 0, 3)]


def numbered(groups, start):
    for number, group in enumerate(groups, start):
        for t in group:
            t.group = number
    return groups


def test_paused_answers_get_media_back_that_are_stored_by_name_only(tmp_path):
    """An engine that reads media by itself needs them to go on."""
    picture = numpy.zeros((2, 2, 3), dtype=numpy.uint8)
    message = {"role": "user", "content": [{"type": "image", "image": picture}]}
    asked = Prompt("q7", [1, 2], [message], None, "test", unexpanded_token_ids=[1])
    opened = replace(asked, token_ids=[1, 5, 5, 2], media={"pixel_values": torch.zeros(2, 3)})
    memory = RolloutBuffer(ReplayConfig())
    memory.unfinished = [[replace(t, prompt=opened) for t in group] for group in groups_of(1, count=1)]
    write_state(tmp_path / "state.pt", memory.packed(memory.state()))
    loader = PromptLoader([([asked], 1.0)], seed=0)
    memory = RolloutBuffer(ReplayConfig(), completed=loader.completed)
    memory.load(read_state(tmp_path / "state.pt"))
    prompt = memory.unfinished[0][0].prompt
    assert prompt.messages[0]["content"][0]["image"] is picture
    assert (prompt.token_ids, list(prompt.unexpanded_token_ids)) == ([1, 5, 5, 2], [1])
    assert memory.unfinished[0][1].prompt is prompt


def test_what_an_environment_said_first_stays_in_a_prompt_with_media(tmp_path):
    """And the row behind it comes back with its picture, to be told to an environment again."""
    picture = numpy.zeros((2, 2, 3), dtype=numpy.uint8)
    row = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    first = {"role": "user", "content": "Guess."}
    spoken = Prompt("q7", [1, 2], [*row, first], None, "test", episode=3, row=row)
    memory = RolloutBuffer(ReplayConfig())
    memory.carried_over = [[replace(t, prompt=spoken) for t in group] for group in groups_of(1, count=1)]
    write_state(tmp_path / "state.pt", memory.packed(memory.state()))
    loader = PromptLoader([([Prompt("q7", [1], row, None, "test")], 1.0)], seed=0)
    memory = RolloutBuffer(ReplayConfig(), completed=loader.completed)
    memory.load(read_state(tmp_path / "state.pt"))
    prompt = memory.carried_over[0][0].prompt
    assert prompt.row[0]["content"][0]["image"] is picture
    assert (prompt.messages[1], len(prompt.messages), prompt.episode) == (first, 2, 3)


def test_ranks_share_what_comes_again():
    assert RolloutBuffer(ReplayConfig(groups_per_step=4), ranks=2).groups == 2
    with pytest.raises(ValueError, match="replay.groups_per_step=3 cannot be shared by 2 processes"):
        RolloutBuffer(ReplayConfig(groups_per_step=3), ranks=2)


def test_what_was_scored_without_a_column_that_the_advantage_reads_since_is_forgotten():
    memory = RolloutBuffer(ReplayConfig(groups_per_step=3))
    scored, whole, waiting = groups_of(1)
    for t in (*scored, *whole):
        t.columns["old"] = torch.zeros(len(t))
    for t in whole:
        t.columns["squares"] = torch.zeros(len(t))
    memory.carried_over = [
        scored,
        whole,
        waiting,
    ]  # the last has no log-probs yet, and gets the column with them
    packed = memory.packed(memory.state())
    for needs, kept in [(False, 3), (True, 2)]:
        again = RolloutBuffer(ReplayConfig(groups_per_step=3), needs_squares=needs)
        again.load(packed)
        assert len(again.carried_over) == kept


def test_answers_that_do_not_know_a_cost_that_was_added_since_are_forgotten():
    memory = RolloutBuffer(ReplayConfig())
    memory.carried_over = groups_of(1)
    packed = memory.packed(memory.state())
    for cost, kept in [("", 3), ("length", 0)]:
        again = RolloutBuffer(ReplayConfig(), cost=cost)
        again.load(packed)
        assert len(again.carried_over) == kept
