"""How much better than expected each token was.

Each takes a batch with `rewards` filled (shaping.token_rewards) and whole groups in it, and returns two
columns, 0 outside the mask: the advantages, and the returns (the undiscounted reward still to come from each
token on, for a critic or the log).

The estimators that compare responses to one prompt find siblings by batch.groups, never by position or text,
and take as reward of a response the sum of its token rewards (shaping.answer_rewards), so a KL penalty in the
reward is part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightrft.algorithms.columns import at_chosen, returns_of, spread
from lightrft.algorithms.optimal_values import optimal_value
from lightrft.algorithms.segments import reverse_scan, segment_count, segment_sum
from lightrft.algorithms.selection import EQUAL_WITHIN
from lightrft.algorithms.shaping import answer_rewards, clip_scores, moments
from lightrft.algorithms.token_baselines import token_baselines
from lightrft.algorithms.turns import turns_apart
from lightrft.config import AlgorithmConfig
from lightrft.config.ranges import Range
from lightrft.types import Batch

STD_EPSILON = 1e-6
"""Added to a group's standard deviation; keeps the advantages of almost equal rewards small."""


def group_norm(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward's distance from the mean of its group, in standard deviations of the group.

    A_i = (r_i - mean(r)) / (std(r) + 1e-6), the same for every token of response i. GRPO, Shao et al. 2024
    (https://arxiv.org/abs/2402.03300), section 4.1.2. The paper leaves the kind of deviation open: ours is
    the sample deviation (divisor G - 1), as in TRL and verl.

    Equal rewards give exactly 0, decided before any division. ValueError for a group of one response.
    """
    groups = _compare(batch, algo, "group_norm")
    return spread(groups.centred / (groups.deviation + STD_EPSILON), batch), returns_of(batch)


def group_norm_by_part(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """Every part of the reward in standard deviations of the group by itself, then added with its weight.

    A_i = sum_k w_k * (r_ik - mean(r_k)) / std(r_k), the same for every token of response i. GDPO, Liu et al. 2026
    (https://arxiv.org/abs/2601.05242), section 3: a part counts by its weight, whatever its scale is; parts that are added first
    (`group_norm`) drown each other. The paper then whitens over the batch: algorithm.whiten. Ours is the sample deviation, as in
    TRL and verl; nothing is added to it, so that a part's scale changes nothing. A penalty in the reward has no part, and is refused.

    Equal parts give exactly 0. ValueError for a group of one response.
    """
    assert batch.grades is not None, "algorithm.advantage=group_norm_by_part needs the parts of rewards"
    assert batch.part_weights is not None
    total = batch.grades.new_zeros(batch.num_sequences, dtype=torch.float64)
    for part, weights in zip(batch.grades.double().unbind(1), batch.part_weights.unbind(1), strict=True):
        groups = _beside(part.nan_to_num(), batch, "group_norm_by_part")
        apart = groups.centred / torch.where(groups.deviation > 0, groups.deviation, 1.0)
        total = total + weights * apart
    return spread(total, batch), returns_of(batch)


group_norm_by_part.needs_parts = True  # type: ignore[attr-defined]


def group_norm_by_turn(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """Reward of `group_norm` for the whole response, and in each turn its own reward in standard deviations of the siblings' rewards of the same turn.

    A_ik = A_i + (r_ik - mean(r_k)) / (std(r_k) + 1e-6) for turn k of response i. MT-GRPO, Zeng et al. 2025
    (https://arxiv.org/abs/2505.11821), which has two turns and rewards the first of them; here each turn is compared with the same
    turn of the siblings that have it. A turn that one response alone has, or in which all are equal, adds exactly 0.

    ValueError for a group of one response.
    """
    outcome, returns = group_norm(batch, algo)
    return outcome + turns_apart(batch, STD_EPSILON).to(outcome), returns


group_norm_by_turn.needs_turns = True  # type: ignore[attr-defined]


def group_mean(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward minus the mean of its group.

    A_i = r_i - mean(r), the same for every token of response i. Dr.GRPO, Liu et al. 2025
    (https://arxiv.org/abs/2503.20783): without the division, easy and hard prompts do not get larger advantages.

    Equal rewards give exactly 0. ValueError for a group of one response.
    """
    return spread(_compare(batch, algo, "group_mean").centred, batch), returns_of(batch)


def leave_one_out(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward minus the mean reward of the other responses to the same prompt.

    A_i = r_i - (1 / (G - 1)) * sum_{j != i} r_j, the same for every token of response i. RLOO, Ahmadian et al.
    2024 (https://arxiv.org/abs/2402.14740). Unbiased, since no response is part of its own baseline. Computed
    as G / (G - 1) * (r_i - mean(r)), which is the same number.

    Equal rewards give exactly 0. ValueError for a group of one response.
    """
    groups = _compare(batch, algo, "leave_one_out")
    return spread(groups.centred * groups.size / (groups.size - 1), batch), returns_of(batch)


def maxrl(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward minus the mean of its group, over that mean: a prompt that is rarely solved weighs as much as its log-likelihood says.

    A_i = (r_i - mean(r)) / mean(r), the same for every token of response i. MaxRL, Tajwar et al. 2026 (https://arxiv.org/abs/2602.02710): for rewards 0 and 1 the
    expectation of its gradient is that of sum_{k < G} pass@k / k, which becomes that of log p as G grows.

    A group without a success gives exactly 0, as do equal rewards. ValueError for rewards below 0, of which no mean is a likelihood, and for
    a group of one response.
    """
    rewards = answer_rewards(batch, algo).double()
    if bool((rewards < 0).any()):
        raise ValueError(
            f"algorithm.advantage=maxrl: a reward is {float(rewards.min()):g}, and this divides by the mean reward of a group, a "
            "likelihood. Use rewards of at least 0, algorithm.kl_in=loss, or algorithm.advantage=group_norm."
        )
    groups = _compare(batch, algo, "maxrl")
    mean = segment_sum(rewards, groups.group, batch.num_sequences)[groups.group] / groups.size
    return spread(groups.centred / torch.where(mean > 0, mean, 1.0), batch), returns_of(batch)


def pass_at_k(
    batch: Batch, algo: AlgorithmConfig, *, k: float = 4, right_from: float = 0.5
) -> tuple[Tensor, Tensor]:
    """What a response does for the chance that one of k is right, over all subsets of k responses of the group.

    With G responses of which W are wrong: m = 1 - C(W, k) / C(G, k) (the unbiased pass@k), s = sqrt(m (1 - m)), and
    A = (1 - m) / s for a right response, A = (1 - m - C(W - 1, k - 1) / C(G - 1, k - 1)) / s for a wrong one. Chen et al. 2025, Pass@k
    Training (https://arxiv.org/abs/2508.10751), its analytical form. A response is right if its reward is at least `right_from`.

    Where every subset has a right response, or none has, all are exactly 0. A group that has lost responses to failed rewards, and has
    fewer than k, is one subset.
    """
    rewards = answer_rewards(batch, algo).double()
    right = (rewards >= right_from).double()
    groups = _beside(right, batch, "pass_at_k")
    wrong = groups.size - segment_sum(right, groups.group, batch.num_sequences)[groups.group]
    taken = groups.size.clamp(max=k)
    fail = _without(wrong, groups.size, taken)
    deviation = (fail * (1 - fail)).sqrt()
    share = torch.where(right > 0, 0.0, _without(wrong - 1, groups.size - 1, taken - 1))
    found = torch.where(deviation > 0, (fail - share) / torch.where(deviation > 0, deviation, 1.0), 0.0)
    return spread(found, batch), returns_of(batch)


def _without(wrong: Tensor, size: Tensor, taken: Tensor) -> Tensor:
    """C(wrong, taken) / C(size, taken): the chance that so many of `size` responses are all wrong."""
    found = torch.ones_like(wrong)
    for place in range(int(taken.max()) if taken.numel() else 0):
        each = ((wrong - place) / (size - place).clamp(min=1)).clamp(min=0)
        found = torch.where(place < taken, found * each, found)
    return found


def reinforce(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward still to come, without a baseline.

    A_t = sum_{u >= t} gamma^(u - t) * r_u, counted in chosen tokens. Williams 1992
    (https://doi.org/10.1007/BF00992696). Needs no group; noisy unless the rewards are centred, see algorithm.whiten: whitened
    over all ranks it is the estimator of REINFORCE++ (Hu 2025, https://arxiv.org/abs/2501.03262).
    """
    returns = returns_of(batch, algo.gamma)
    return returns, returns


def length_weighted_mean(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward minus the mean reward of its group, weighted by response length.

    A_i = r_i - sum_j(l_j * r_j) / sum_j(l_j), l_j the chosen tokens of response j, the same for every token of response i.
    OPO, Hao et al. 2025 (https://arxiv.org/abs/2505.23585): the baseline with the least variance if the squared
    gradient of a response grows with its length. A response without a token weighs nothing; a group of such responses has
    no baseline and advantage 0.

    Equal rewards give exactly 0. ValueError for a group of one response.
    """
    groups = _compare(batch, algo, "length_weighted_mean")
    length = segment_count(batch.mask, batch.segments, batch.num_sequences).double()
    weighted = segment_sum(groups.centred * length, groups.group, batch.num_sequences)
    total = segment_sum(length, groups.group, batch.num_sequences).clamp(min=1)
    return spread(groups.centred - (weighted / total)[groups.group], batch), returns_of(batch)


length_weighted_mean.counts_tokens = True  # type: ignore[attr-defined]


def optimal_token_baseline(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward still to come, minus the mean of the siblings' at the same token, weighted by how uncertain each response was so far.

    A_it = G_it - sum_j(W_jt * G_jt) / sum_j(W_jt), over the responses j with a t-th chosen token; G_it = sum_{u >= t} r_iu and W_jt the sum over u <= t
    of 1 - 2 p_ju + sum_v p_v^2, the squared gradient of log p_ju by the logits. OTB, Li et al. 2026 (https://arxiv.org/abs/2602.07078).

    Where one response alone goes on, or all were certain so far, the baseline is that of group_mean; verl has 0 there.
    Equal rewards at the last token give exactly 0. ValueError for a group of one response.
    """
    groups = _compare(batch, algo, "optimal_token_baseline")
    returns = returns_of(batch)
    # Centred first, which changes no weighted mean: equal rewards then leave no rounding behind.
    gone = answer_rewards(batch, algo).double()[batch.segments] - returns.double()
    worth = (groups.centred[batch.segments] - gone)[batch.mask]
    advantages = worth - token_baselines(worth, batch, groups.group)
    return at_chosen(advantages.to(returns.dtype), batch), returns


optimal_token_baseline.needs_squares = True  # type: ignore[attr-defined]


def greedy_baseline(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """The reward still to come, minus the reward of the greedy (most likely) response to the prompt.

    A_t = sum_{u >= t} r_u - r(greedy response). ReMax, Li et al. 2023 (https://arxiv.org/abs/2310.10505), algorithm 2. Needs no group; a
    greedy response to each prompt is sampled and judged besides, and is not learned from. With a KL penalty in the reward the
    baseline has none, as in verl.
    """
    assert batch.baselines is not None, (
        "algorithm.advantage=greedy_baseline needs the rewards of greedy responses"
    )
    returns = returns_of(batch)
    baseline = clip_scores(batch.baselines, algo.reward_clip).to(returns.dtype)
    return torch.where(batch.mask, returns - baseline[batch.segments], 0.0), returns


greedy_baseline.needs_baseline = True  # type: ignore[attr-defined]


def gae(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, from a critic's values of the states before each token.

    delta_t = r_t + gamma * V_{t+1} - V_t;  A_t = sum_n (gamma * gae_lambda)^n delta_{t+n};  return_t = A_t + V_t.
    Schulman et al. 2015 (https://arxiv.org/abs/1506.02438), eqs. 11 and 16. Steps are the chosen tokens of a response; after its
    last one the value is 0, also for a response that was truncated.
    """
    assert batch.rewards is not None, "fill batch.rewards (token_rewards) before advantages"
    assert batch.values is not None, "algorithm.advantage=gae needs the critic's values"
    rewards, values, answer = (x[batch.mask] for x in (batch.rewards, batch.values, batch.segments))
    following = torch.zeros_like(values)
    following[:-1] = torch.where(answer[1:] == answer[:-1], values[1:], 0.0)
    surprise = rewards + algo.gamma * following - values
    advantages = reverse_scan(surprise, answer, algo.gamma * algo.gae_lambda)
    return at_chosen(advantages, batch), at_chosen(advantages + values, batch)


gae.needs_values = True  # type: ignore[attr-defined]


def none(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
    """No advantage from rewards: what is learned comes from a teacher (algorithm.teacher_coefficient), or from a loss that compares responses."""
    returns = returns_of(batch)
    return torch.zeros_like(returns), returns


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor]
) -> float:
    """1 - Var(returns - values) / Var(returns) over the chosen tokens of all ranks; 1 is a perfect critic.

    0 is one that knows no more than the mean; a bad one is below. NaN where all returns are equal. `reduce` as in whiten.
    """
    all_of_it = moments(returns[mask], reduce).variance
    left = moments((returns - values)[mask], reduce).variance
    return 1 - left / all_of_it if all_of_it > 0 else float("nan")


def whiten(values: Tensor, mask: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """`values` (T,) at mean 0 and deviation 1 over the masked-in tokens of all ranks; 0 elsewhere.

    `reduce` sums a tensor over ranks (the identity in one process) and is called twice, on every rank, also
    on one without tokens. Float64 inside; population deviation (divisor: the number of tokens). Values that
    are all equal give exactly 0: a deviation below 1e-9 of the mean is rounding.
    """
    found = moments(values[mask], reduce)
    if found.deviation <= 1e-9 * abs(found.mean):
        return torch.zeros_like(values)
    return torch.where(mask, (values.double() - found.mean) / found.deviation, 0.0).to(values.dtype)


class _Groups(NamedTuple):
    """Each response beside its siblings, (S,) float64."""

    centred: Tensor
    """Reward minus the mean of its group; exactly 0 where all rewards of the group are equal."""
    deviation: Tensor
    """Sample standard deviation of its group."""
    size: Tensor
    """Responses in its group."""
    group: Tensor
    """Which group, 0 .. number of groups - 1, int64."""


def _compare(batch: Batch, algo: AlgorithmConfig, name: str) -> _Groups:
    return _beside(answer_rewards(batch, algo).double(), batch, name)


def _beside(rewards: Tensor, batch: Batch, name: str) -> _Groups:
    """Each of the numbers (S,) float64 beside those of its siblings. ValueError for a group of one response."""
    ids, group = torch.unique(batch.groups, return_inverse=True)
    num_groups = int(ids.numel())
    size = segment_sum(torch.ones_like(rewards), group, num_groups)
    if bool((size < 2).any()):
        raise ValueError(
            f"group {int(ids[size < 2][0])} has 1 response: algorithm.advantage={name} compares responses "
            "to one prompt and needs at least 2. Set rollout.group_size=8, or algorithm.advantage=reinforce. "
            "If rewards.on_failure=drop left one response, the group must be dropped whole."
        )
    highest = rewards.new_zeros(num_groups).scatter_reduce(0, group, rewards, "amax", include_self=False)
    lowest = rewards.new_zeros(num_groups).scatter_reduce(0, group, rewards, "amin", include_self=False)
    equal = highest - lowest <= EQUAL_WITHIN * torch.maximum(highest.abs(), lowest.abs())
    mean = segment_sum(rewards, group, num_groups) / size
    centred = torch.where(equal[group], 0.0, rewards - mean[group])
    deviation = (segment_sum(centred.square(), group, num_groups) / (size - 1)).sqrt()
    return _Groups(centred, deviation[group], size[group], group)


Advantage = Callable[[Batch, AlgorithmConfig], tuple[Tensor, Tensor]]
"""-> advantages (T,), returns (T,)"""

for _comparing in (
    group_norm, group_norm_by_part, group_mean, leave_one_out, length_weighted_mean, optimal_token_baseline, maxrl, pass_at_k,
):  # fmt: skip
    _comparing.compares_responses = True  # type: ignore[attr-defined]
    _comparing.unused_settings = ("gae_lambda", "gamma")  # type: ignore[attr-defined]
group_norm_by_part.unused_settings = (  # type: ignore[attr-defined]
    "gae_lambda",
    "gamma",
    "reward_clip",
    "overlong_buffer",
    "kl_in",
)
maxrl.plain_rewards = pass_at_k.plain_rewards = True  # type: ignore[attr-defined]
pass_at_k.ranges = {"k": Range(1)}  # type: ignore[attr-defined]
pass_at_k.subsets_of = "k"  # type: ignore[attr-defined]
greedy_baseline.unused_settings = ("gae_lambda", "gamma")  # type: ignore[attr-defined]
reinforce.unused_settings = ("gae_lambda",)  # type: ignore[attr-defined]
none.needs_teacher = none.ignores_rewards = True  # type: ignore[attr-defined]
none.unused_settings = (  # type: ignore[attr-defined]
    "gae_lambda",
    "gamma",
    "whiten",
    "advantage_clip",
    "reward_clip",
    "overlong_buffer",
    "high_entropy_fraction",
    "kl_in",
)

ADVANTAGES: dict[str, Advantage] = {
    "group_norm": group_norm,
    "group_norm_by_part": group_norm_by_part,
    "group_norm_by_turn": group_norm_by_turn,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "length_weighted_mean": length_weighted_mean,
    "optimal_token_baseline": optimal_token_baseline,
    "maxrl": maxrl,
    "pass_at_k": pass_at_k,
    "reinforce": reinforce,
    "greedy_baseline": greedy_baseline,
    "optimal_value": optimal_value,
    "gae": gae,
    "none": none,
}
