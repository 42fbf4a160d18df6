import pytest

from lightrft.algorithms.shaping import answer_rewards, clip_scores, token_rewards
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch

GRPO = AlgorithmConfig()
KL_IN_REWARD = AlgorithmConfig(kl="k1", kl_in="reward", kl_coefficient=0.5)


def test_the_score_lies_on_the_last_token_the_policy_chose():
    batch = make_batch([3, 2], scores=[1.0, -2.0], mask=[True, True, False, True, True])
    assert token_rewards(batch, GRPO).tolist() == [0.0, 1.0, 0.0, 0.0, -2.0]


def test_scores_are_clipped_when_asked():
    batch = make_batch([1, 1, 1], scores=[5.0, -3.0, 0.5])
    assert token_rewards(batch, AlgorithmConfig(reward_clip=1.0)).tolist() == [1.0, -1.0, 0.5]
    assert clip_scores(batch.scores, 0.0).tolist() == [5.0, -3.0, 0.5]


def test_a_divergence_in_the_reward_is_paid_by_each_chosen_token():
    batch = make_batch(
        [3], scores=[1.0], mask=[True, False, True], old=[-1.0, -9.0, -2.0], ref=[-2.0, 0.0, -1.0]
    )
    assert token_rewards(batch, KL_IN_REWARD).tolist() == [-0.5, 0.0, 1.5]


def test_a_divergence_in_the_loss_leaves_the_reward_alone():
    batch = make_batch([2], scores=[1.0], old=[-1.0, -1.0], ref=[-2.0, -2.0])
    assert token_rewards(batch, AlgorithmConfig(kl_coefficient=0.5)).tolist() == [0.0, 1.0]


def test_a_divergence_in_the_reward_needs_old_log_probs():
    batch = make_batch([2], ref=[-2.0, -2.0])
    with pytest.raises(AssertionError, match="old log-probs"):
        token_rewards(batch, KL_IN_REWARD)


def test_the_reward_of_an_answer_is_the_sum_over_its_tokens():
    batch = make_batch([2, 1], rewards=[-0.5, 1.5, 3.0])
    assert answer_rewards(batch, GRPO).tolist() == [1.0, 3.0]


def test_an_answer_of_zero_tokens_keeps_its_score():
    batch = make_batch([2, 0], scores=[1.0, -4.0])
    algo = AlgorithmConfig(reward_clip=2.0)
    batch.rewards = token_rewards(batch, algo)
    assert answer_rewards(batch, algo).tolist() == [1.0, -2.0]
