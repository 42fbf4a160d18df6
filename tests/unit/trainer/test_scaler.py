import statistics

import pytest

from lightrft.config import ConstraintConfig, RewardConfig
from lightrft.parallel.world import World
from lightrft.trainer.scaler import RewardScaler
from lightrft.types import Prompt, Trajectory


def answer(reward, source="sums", **parts):
    prompt = Prompt(id="q", token_ids=[1], messages=[], target=None, source=source)
    return Trajectory(prompt, 0, [1], [True], [0.0], "stop", reward=reward, parts=parts)


def scaler(*, constraint=None, cost="", **rewards):
    return RewardScaler(
        ["sums", "words"], RewardConfig(**rewards), constraint or ConstraintConfig(), cost, World()
    )


def test_by_default_a_score_is_the_reward():
    assert scaler().update([answer(0.25)]) == {}
    assert scaler().transform([answer(0.25), answer(-3.0)]).tolist() == [0.25, -3.0]


def test_each_task_has_its_own_scale():
    assert scaler(scale={"words": 0.5}).transform([answer(1.0), answer(1.0, "words")]).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("normalise", ["scale", "shift_and_scale"])
def test_rewards_are_normalised_by_all_of_their_task_so_far(normalise):
    made, seen = scaler(normalise=normalise, scale={"sums": 2.0}), [1.0, 3.0, 8.0, 2.0]
    for reward in seen:
        made.update([answer(reward), answer(100 * reward, "words")])
    centre = statistics.fmean(seen) if normalise == "shift_and_scale" else 0.0
    expected = (5.0 - centre) / statistics.pstdev(seen)
    found = made.transform([answer(5.0), answer(500.0, "words")]).tolist()
    assert found == pytest.approx([2 * expected, expected])


def test_a_cost_above_its_limit_gets_dearer_step_by_step():
    made = scaler(constraint=ConstraintConfig(cost="length", limit=0.5, learning_rate=2.0), cost="length")
    assert made.update([answer(1.0, length=1.0), answer(1.0, length=2.0)]) == {"constraint/multiplier": 3.0}
    assert made.transform([answer(1.0, length=1.0)]).tolist() == [-0.5]
    assert made.update([answer(1.0, length=0.0)]) == {"constraint/multiplier": 2.0}


def test_what_was_learned_about_rewards_survives_a_checkpoint():
    constraint = ConstraintConfig(cost="length", limit=0.5)
    one = scaler(normalise="scale", constraint=constraint, cost="length")
    one.update([answer(1.0, length=1.0), answer(4.0, length=3.0)])
    other = scaler(normalise="scale", constraint=constraint, cost="length")
    other.load(one.state())
    later = [answer(2.0, length=1.0)]
    assert other.update(later) == one.update(later)
    assert other.transform(later).tolist() == one.transform(later).tolist()


def test_the_likeliest_answer_is_scored_as_the_others_are():
    """So an answer that is as good as the likeliest has advantage 0, in whatever step it is learned from."""
    made = scaler(scale={"sums": 3.0}, constraint=ConstraintConfig(cost="length"), cost="length")
    one = answer(0.5, length=0.25)
    one.baseline, one.baseline_parts = 0.5, {"length": 0.25}
    made.update([one])
    assert made.baselines([one]).tolist() == made.transform([one]).tolist()


def test_a_constraint_added_at_a_resume_begins_with_its_own_price():
    later = scaler(constraint=ConstraintConfig(cost="length", multiplier=0.0), cost="length")
    later.load(scaler().state())
    assert later.multiplier == 0.0
