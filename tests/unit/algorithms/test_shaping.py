import random
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from lightrft.algorithms.shaping import (
    RunningMoments,
    answer_rewards,
    clip_scores,
    teacher_advantage,
    token_rewards,
)
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch
from tests.properties.test_algorithms import sum_over_threads

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


def test_a_teacher_adds_what_it_likes_better_than_the_policy_did():
    batch = make_batch([3], mask=[True, False, True], old=[-1.0, -9.0, -2.0], teacher=[-0.5, 0.0, -4.0])
    assert teacher_advantage(batch).tolist() == [0.5, 0.0, -2.0]


@pytest.mark.parametrize("seed", range(10))
def test_running_moments_are_those_of_all_numbers_however_they_came(seed):
    draw = random.Random(seed)
    numbers = [draw.gauss(3, 2) for _ in range(40)]
    moments, rest = RunningMoments(), list(numbers)
    while rest:
        size = draw.randrange(0, 9)
        moments.see(torch.tensor(rest[:size]), lambda x: x)
        rest = rest[size:]
    assert moments.count == 40
    assert moments.mean == pytest.approx(statistics.fmean(numbers))
    assert moments.deviation == pytest.approx(statistics.pstdev(numbers), rel=1e-6)


def test_ranks_share_their_running_moments():
    parts = [torch.tensor([1.0, 2.0, 6.0]), torch.tensor([]), torch.tensor([4.0])]
    ranks, total = [RunningMoments() for _ in parts], sum_over_threads(3)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda r: ranks[r].see(parts[r], total), range(3)))
    assert [r.mean for r in ranks] == [3.25] * 3
    assert [r.deviation for r in ranks] == [pytest.approx(statistics.pstdev([1, 2, 6, 4]))] * 3


def test_normalised_rewards_are_in_deviations():
    moments = RunningMoments()
    moments.see(torch.tensor([0.0, 4.0]), lambda x: x)
    assert moments.normalise(torch.tensor([4.0, 3.0]), shift=True).tolist() == [1.0, 0.5]
    assert moments.normalise(torch.tensor([4.0, 3.0]), shift=False).tolist() == [2.0, 1.5]


def test_rewards_that_were_always_equal_are_not_blown_up():
    moments = RunningMoments()
    moments.see(torch.tensor([0.1, 0.1, 0.1]), lambda x: x)
    assert moments.normalise(torch.tensor([0.1]), shift=True).abs().max() < 1e-7
    assert moments.normalise(torch.tensor([0.1]), shift=False).tolist() == pytest.approx([0.1])
    assert RunningMoments().normalise(torch.tensor([0.3]), shift=True).tolist() == pytest.approx([0.3])
