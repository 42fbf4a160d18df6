"""Engines that let go of weights and cache at once, and take them back one by one."""

from hypothesis import given
from hypothesis import strategies as st

from lightrft.engines.external import TAGS, JointSleeper


class Holding:
    """Holds its tags, and minds being asked for what cannot be."""

    def __init__(self):
        self.held, self.turns = set(TAGS), []

    def let_go(self):
        assert self.held, "it sleeps already"
        self.held.clear()
        self.turns.append("sleep")

    def take(self, tag):
        assert tag not in self.held, f"{tag} is there already"
        self.held.add(tag)
        self.turns.append(tag)


def test_phases_of_a_run_move_each_part_once():
    engine = Holding()
    both = JointSleeper(engine.let_go, engine.take)
    both.sleep("weights")
    both.sleep("kv_cache")
    both.wake("weights")  # sync
    both.wake("kv_cache")  # rollout
    both.sleep("weights")  # train
    both.sleep("kv_cache")
    assert engine.turns == ["sleep", "weights", "kv_cache", "sleep"]
    both.wake("weights")  # sync, and then something fails
    both.sleep("weights")
    assert engine.turns[4:] == ["weights", "sleep"]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(sorted(TAGS)))))
def test_what_is_wanted_is_there_and_nothing_is_when_neither_is(calls):
    engine, wanted = Holding(), set(TAGS)
    both = JointSleeper(engine.let_go, engine.take)
    for wakes, tag in calls:
        (both.wake if wakes else both.sleep)(tag)
        (wanted.add if wakes else wanted.discard)(tag)
        assert wanted <= engine.held
        assert wanted or not engine.held
        assert both.asleep == TAGS - engine.held
