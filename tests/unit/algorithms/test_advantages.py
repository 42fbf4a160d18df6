import itertools
import math
import statistics

import pytest
import torch

from lightrft.algorithms.advantages import (
    ADVANTAGES,
    group_mean,
    group_norm,
    group_norm_by_part,
    leave_one_out,
    reinforce,
    whiten,
)
from lightrft.algorithms.shaping import token_rewards
from lightrft.algorithms.token_baselines import energies
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch

GRPO = AlgorithmConfig()
COMPARING = ["group_norm", "group_mean", "leave_one_out"]


def answers(scores, *, lengths=None, groups=None, mask=None, **columns):
    batch = make_batch(lengths or [1] * len(scores), scores=scores, groups=groups, mask=mask, **columns)
    batch.rewards = token_rewards(batch, GRPO)
    return batch


def test_group_norm_divides_by_the_sample_deviation():
    advantages, _ = group_norm(answers([1.0, 0.0, 0.0, 0.0]), GRPO)
    torch.testing.assert_close(advantages, torch.tensor([1.5, -0.5, -0.5, -0.5]))


def test_group_mean_does_not_divide():
    advantages, _ = group_mean(answers([1.0, 0.0, 0.0, 0.0]), GRPO)
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25]


def test_leave_one_out_compares_with_the_others_only():
    advantages, _ = leave_one_out(answers([1.0, 0.0, 0.0, 3.0]), GRPO)
    torch.testing.assert_close(advantages, torch.tensor([0.0, -4 / 3, -4 / 3, 8 / 3]))


def test_reinforce_takes_the_reward_still_to_come():
    batch = make_batch([3, 1], rewards=[-0.5, 0.25, 1.0, 2.0])
    advantages, returns = reinforce(batch, GRPO)
    assert advantages.tolist() == [0.75, 1.25, 1.0, 2.0]
    assert returns.tolist() == [0.75, 1.25, 1.0, 2.0]


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "none"])
def test_every_token_of_an_answer_gets_its_advantage_and_none_outside_the_mask_does(name):
    batch = answers([1.0, 0.0], lengths=[3, 1], mask=[True, True, False, True], values=[0.0] * 4)
    batch.baselines, batch.turn_rewards = torch.zeros(2), torch.zeros(4)
    advantages, returns = ADVANTAGES[name](batch, GRPO, **({"k": 1} if name == "pass_at_k" else {}))
    assert advantages[0] == advantages[1] > 0
    assert advantages[2] == 0
    assert returns.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_gae_by_hand():
    """Discount 1/2, lambda 1/2; the third token was not chosen, so the second is followed by the fourth."""
    batch = answers([8.0], lengths=[4], mask=[True, True, False, True], values=[1.0, 2.0, 50.0, 4.0])
    algo = AlgorithmConfig(advantage="gae", gamma=0.5, gae_lambda=0.5)
    advantages, returns = ADVANTAGES["gae"](batch, algo)
    # delta: 0 + 2/2 - 1 = 0, 0 + 4/2 - 2 = 0, 8 - 4 = 4; each step back a quarter of it
    assert advantages.tolist() == [0.25, 1.0, 0.0, 4.0]
    assert returns.tolist() == [1.25, 3.0, 0.0, 8.0]


def test_the_length_weighted_baseline_by_hand():
    """Rewards 1 and 0 of three tokens and one: the baseline is 3/4."""
    batch = answers([1.0, 0.0], lengths=[3, 1])
    advantages, _ = ADVANTAGES["length_weighted_mean"](batch, GRPO)
    assert advantages.tolist() == [0.25, 0.25, 0.25, -0.75]


HALF, SURE = math.log(0.5), math.log(0.75)


def test_the_optimal_token_baseline_by_hand():
    """Energies 1/4, 1/2, 3/4 beside 1/16, then a token that one response alone has: baselines 4/5, 8/9 and the mean, 1/2."""
    batch = answers([1.0, 0.0], lengths=[3, 2], old=[HALF, HALF, HALF, SURE, 1e-12])
    advantages, returns = ADVANTAGES["optimal_token_baseline"](batch, GRPO)
    assert advantages.tolist() == pytest.approx([1 / 5, 1 / 9, 1 / 2, -4 / 5, -8 / 9])
    assert returns.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_the_optimal_token_baseline_steps_over_what_a_tool_replied():
    """And reads the log-probs of sampling where no others are known."""
    batch = answers(
        [1.0, 0.0],
        lengths=[3, 2],
        mask=[True, False, True, True, True],
        behavior=[HALF, -9.0, HALF, SURE, 0.0],
    )
    advantages, _ = ADVANTAGES["optimal_token_baseline"](batch, GRPO)
    assert advantages.tolist() == pytest.approx([1 / 5, 0.0, 1 / 9, -4 / 5, -8 / 9])


def test_the_optimal_token_baseline_knows_siblings_by_their_group():
    """Wherever they lie, and whatever else is packed beside them."""
    old = [-0.1, -0.7, -2.0, -0.4]
    apart = answers([1.0, 0.0, 3.0, 4.0], groups=[7, 2, 7, 2], old=old)
    alone = answers([3.0, 1.0], groups=[7, 7], old=[old[2], old[0]])
    together, one = (ADVANTAGES["optimal_token_baseline"](b, GRPO)[0].tolist() for b in (apart, alone))
    assert [together[2], together[0]] == one


def test_the_optimal_token_baseline_of_equal_rewards_is_exact_at_every_length():
    batch = answers([0.1] * 3, lengths=[1, 4, 2], old=[-0.3] * 7)
    assert ADVANTAGES["optimal_token_baseline"](batch, GRPO)[0].tolist() == [0.0] * 7


def test_energies_are_squared_gradients():
    """Of the log-prob itself by the logits, of distributions from flat to sharp; with what the head says of them."""
    draw = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 5.0):
        logits = (scale * torch.randn(50, 7, generator=draw, dtype=torch.float64)).requires_grad_()
        p = torch.softmax(logits, 1)
        chosen = p[:, 0].log()
        (gradient,) = torch.autograd.grad(chosen.sum(), logits, retain_graph=True)
        batch = make_batch([1] * 50, old=chosen.detach(), squares=p.detach().square().sum(1))
        torch.testing.assert_close(energies(batch), gradient.square().sum(1))


def test_without_the_sum_of_squares_there_is_no_optimal_token_baseline():
    batch = answers([1.0, 0.0], lengths=[3, 2])
    batch.squares = None
    with pytest.raises(ValueError, match="were scored by a run with another advantage"):
        ADVANTAGES["optimal_token_baseline"](batch, GRPO)


@pytest.mark.parametrize("name", COMPARING)
@pytest.mark.parametrize(
    "scores", [[0.1] * 8, [1 / 3] * 7, [1.0, 1.0 + 2**-23], [0.0] * 4, [1e-30] * 3, [-1e6] * 5]
)
def test_equal_rewards_give_exactly_zero(name, scores):
    advantages, _ = ADVANTAGES[name](answers(scores), GRPO)
    assert advantages.tolist() == [0.0] * len(scores)


@pytest.mark.parametrize("name", COMPARING)
def test_siblings_are_found_by_their_group_wherever_they_lie(name):
    together, _ = ADVANTAGES[name](answers([1.0, 0.0, 5.0, 2.0], groups=[7, 7, 3, 3]), GRPO)
    apart, _ = ADVANTAGES[name](answers([1.0, 5.0, 0.0, 2.0], groups=[7, 3, 7, 3]), GRPO)
    assert apart.tolist() == together[[0, 2, 1, 3]].tolist()


@pytest.mark.parametrize("name", COMPARING)
def test_an_answer_without_siblings_is_refused(name):
    with pytest.raises(
        ValueError, match=rf"group 3 has 1 response: algorithm.advantage={name} .*rollout.group_size=8"
    ):
        ADVANTAGES[name](answers([1.0, 0.0, 1.0], groups=[0, 0, 3]), GRPO)


def test_an_answer_of_zero_tokens_still_counts_in_the_mean_of_its_group():
    advantages, _ = group_mean(answers([1.0, 0.0, 0.0], lengths=[1, 0, 2]), GRPO)
    torch.testing.assert_close(advantages, torch.tensor([2 / 3, -1 / 3, -1 / 3]))


def test_a_penalty_in_the_token_rewards_is_part_of_the_reward_of_the_answer():
    batch = make_batch([2, 1], scores=[1.0, 1.0], rewards=[-0.5, 1.0, 1.0])
    advantages, _ = group_mean(batch, GRPO)
    assert advantages.tolist() == [-0.25, -0.25, 0.25]


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_rank_without_answers_has_no_advantages(name):
    nothing = answers([], values=[])
    nothing.baselines, nothing.turn_rewards = torch.zeros(0), torch.zeros(0)
    advantages, returns = ADVANTAGES[name](nothing, GRPO)
    assert advantages.tolist() == returns.tolist() == []


def same(x):
    return x


def test_whitening_shifts_and_scales_inside_the_mask():
    values = torch.tensor([1.0, 2.0, 3.0, 99.0])
    whitened = whiten(values, torch.tensor([True, True, True, False]), same)
    torch.testing.assert_close(whitened, torch.tensor([-math.sqrt(1.5), 0.0, math.sqrt(1.5), 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whitening_equal_values_gives_exactly_zero(dtype):
    assert (
        whiten(torch.full((37,), 0.1, dtype=dtype), torch.ones(37, dtype=torch.bool), same).tolist()
        == [0.0] * 37
    )


def test_whitening_without_tokens_still_takes_part_in_both_sums():
    calls = []
    whitened = whiten(torch.zeros(2), torch.zeros(2, dtype=torch.bool), lambda x: calls.append(x) or x)
    assert whitened.tolist() == [0.0, 0.0]
    assert len(calls) == 2


@pytest.mark.parametrize("factor", [0.001, 10.0, 1e6])
def test_the_scale_of_one_part_changes_nothing_when_parts_are_normalised_by_themselves(factor):
    batch = answers([1.0, 0.0, 0.0, 0.0])
    batch.grades = torch.tensor([[1.0, 3.0], [0.0, 5.0], [0.0, 4.0], [0.0, 4.0]], dtype=torch.float64)
    batch.part_weights = torch.tensor([[1.0, 0.5]] * 4)
    plain, _ = group_norm_by_part(batch, GRPO)
    # deviations 1/2 and sqrt(2/3): 1.5 - 0.5 / sqrt(2/3), -0.5 + 0.5 / sqrt(2/3), -0.5, -0.5
    apart = 0.5 / (2 / 3) ** 0.5
    expected = torch.tensor([1.5 - apart, -0.5 + apart, -0.5, -0.5])
    torch.testing.assert_close(plain.unique(), expected.unique().to(plain.dtype))
    batch.grades = batch.grades * torch.tensor([1.0, factor])
    scaled, _ = group_norm_by_part(batch, GRPO)
    torch.testing.assert_close(scaled, plain)


def test_maxrl_divides_by_the_mean_of_the_group():
    """One right of four: (1 - 1/4) / (1/4) = 3, and -1; a group without a success says nothing."""
    advantages, _ = ADVANTAGES["maxrl"](answers([1.0, 0.0, 0.0, 0.0]), GRPO)
    assert advantages.tolist() == [3.0, -1.0, -1.0, -1.0]
    assert ADVANTAGES["maxrl"](answers([0.0, 0.0]), GRPO)[0].tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"a reward is -1, and this divides by the mean reward"):
        ADVANTAGES["maxrl"](answers([1.0, -1.0]), GRPO)


@pytest.mark.parametrize(
    "rewards", [[1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0], [1, 1, 0], [1, 1, 1]]
)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_is_what_all_subsets_say(rewards, k):
    """The mean over subsets of k that a response is in, minus the mean over all, over the deviation over all."""
    advantages, _ = ADVANTAGES["pass_at_k"](answers([float(r) for r in rewards]), GRPO, k=k)
    subsets = list(itertools.combinations(range(len(rewards)), k))
    solved = {s: float(any(rewards[i] for i in s)) for s in subsets}
    mean = statistics.fmean(solved.values())
    deviation = statistics.pstdev(solved.values())
    expected = [
        (statistics.fmean(solved[s] for s in subsets if i in s) - mean) / deviation if deviation else 0.0
        for i in range(len(rewards))
    ]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_group_with_fewer_responses_than_k_is_one_subset():
    """As rewards.on_failure=drop may leave it: all of it is right or wrong."""
    batch = answers([1.0, 0.0, 0.0])
    assert ADVANTAGES["pass_at_k"](batch, GRPO, k=4)[0].tolist() == [0.0] * 3


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_maxrl_follows_pass_at_k_for_all_k_below_the_group(size, p):
    """Over all outcomes of a policy that is right with probability p: d/dp sum_{k < G} pass@k / k = sum_{k < G} (1 - p)^(k - 1)."""
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=size):
        chance = math.prod(p if r else 1 - p for r in outcome)
        advantages = ADVANTAGES["maxrl"](answers(list(outcome)), GRPO)[0].tolist()
        slopes = [1 / p if r else -1 / (1 - p) for r in outcome]
        total += chance * statistics.fmean(a * s for a, s in zip(advantages, slopes, strict=True))
    assert total == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, size)), abs=1e-5)
