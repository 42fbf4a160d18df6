import statistics

import pytest

from lightrft.config import ConstraintConfig, RewardConfig
from lightrft.parallel.world import World
from lightrft.trainer.scaler import RewardScaler
from lightrft.types import Prompt, Trajectory


def answer(reward, source="sums", **parts):
    prompt = Prompt(id="q", token_ids=[1], messages=[], target=None, source=source)
    return Trajectory(prompt, 0, [1], [True], [0.0], "stop", reward=reward, parts=parts)


def scaler(*, constraint=None, cost="", weights=None, places=None, **rewards):
    constraint = constraint or ConstraintConfig()
    return RewardScaler(
        ["sums", "words"], RewardConfig(**rewards), constraint, cost, World(), weights, places
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


def test_a_reward_model_that_was_changed_at_a_resume_is_normalised_by_its_own_numbers(caplog):
    """One of two reward models is another one now: the task that it judges is measured anew, the other goes on."""
    weights = {"sums": {"helpful": 1.0, "length": 0.0}, "words": {"tidy": 2.0}}
    before = {"helpful": "first/model", "tidy": "tidy/model"}
    one = scaler(normalise="scale", weights=weights, places=before)
    one.update([answer(10.0), answer(30.0), answer(1.0, "words"), answer(5.0, "words")])
    other = scaler(normalise="scale", weights=weights, places={**before, "helpful": "second/model"})
    other.load(one.state())
    assert "the rewards of task sums are others than before the resume" in caplog.text
    assert "words" not in caplog.text
    other.update([answer(0.1), answer(0.3)])
    assert other.transform([answer(0.3), answer(3.0, "words")]).tolist() == pytest.approx([3.0, 1.5])
    heavier = scaler(normalise="scale", weights={**weights, "words": {"tidy": 4.0}}, places=before)
    heavier.load(one.state())
    assert heavier.moments["words"].count == 0
    watched = {**weights, "sums": {"helpful": 1.0, "length": 0.0, "turns": 0.0}}
    same = scaler(normalise="scale", weights=watched, places=before)
    same.load(one.state())
    assert same.moments == one.moments


def test_the_price_of_a_cost_goes_on_unless_another_model_gives_it(caplog):
    constraint = ConstraintConfig(cost="safe", limit=0.0, learning_rate=1.0, multiplier=0.25)
    one = scaler(constraint=constraint, cost="safe", places={"safe": "first:cost"})
    one.update([answer(1.0, safe=2.0)])
    for place, expected in (("first:cost", 2.25), ("second:cost", 0.25)):
        later = scaler(constraint=constraint, cost="safe", places={"safe": place})
        later.load(one.state())
        assert later.multiplier == expected
    assert "constraint.cost=safe is given by second:cost since the resume" in caplog.text


def test_a_checkpoint_of_before_it_was_told_who_gives_what_is_taken_whole():
    one = scaler(normalise="scale", weights={"sums": {"helpful": 1.0}}, places={"helpful": "model"})
    one.update([answer(1.0), answer(3.0)])
    state = {name: value for name, value in one.state().items() if name not in ("given", "cost_by")}
    other = scaler(normalise="scale", weights={"sums": {"helpful": 1.0}}, places={"helpful": "model"})
    other.load(state)
    assert other.moments == one.moments
