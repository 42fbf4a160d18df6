"""Selection of the groups to learn from, of their responses, and of their tokens.

Groups that are not kept are sampled again, see rollout.max_sampling_rounds. Responses that are filtered out have counted in the
baseline of their group.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import zip_longest
from statistics import fmean, pvariance, stdev

import torch
from torch import Tensor

from lightrft.algorithms.segments import segment_count
from lightrft.config.ranges import Range
from lightrft.types import GroupOfTrajectories, Trajectory

EQUAL_WITHIN = 1e-6
"""Rewards that differ by less than this share of the largest are equal: that is float32 rounding."""


def all_groups(group: GroupOfTrajectories) -> bool:
    """True: learn from every group."""
    return True


def mixed_outcomes(group: GroupOfTrajectories) -> bool:
    """Whether the rewards of the group differ, so that comparing them says something.

    Dynamic sampling of DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476, eq. 11), stated there for
    right and wrong responses: some, but not all, are right. Here any difference beyond rounding counts.
    """
    rewards = [trajectory.reward for trajectory in group]
    return max(rewards) - min(rewards) > EQUAL_WITHIN * max(abs(reward) for reward in rewards)


def mixed_turns(group: GroupOfTrajectories) -> bool:
    """`mixed_outcomes` where turns are compared with the siblings' same turns, too (group_norm_by_turn): equal sums may hide turns that
    teach."""
    if mixed_outcomes(group):
        return True
    turns = zip_longest(*(trajectory.step_rewards for trajectory in group))
    there = [[reward for reward in turn if reward is not None] for turn in turns]
    return any(max(turn) - min(turn) > EQUAL_WITHIN * max(map(abs, turn)) for turn in there)


def mixed_parts(group: GroupOfTrajectories, weights: Mapping[str, float]) -> bool:
    """`mixed_outcomes` for parts that are each compared in the group by themselves (group_norm_by_part): whether any advantage is not 0.

    Equal sums may hide parts that teach, and different sums parts that cancel each other. What has weight 0 says nothing.
    """
    totals = [0.0] * len(group)
    for name, weight in weights.items():
        values = [trajectory.parts.get(name, 0.0) for trajectory in group]
        if max(values) - min(values) > EQUAL_WITHIN * max(map(abs, values)):
            mean, deviation = fmean(values), stdev(values)
            totals = [
                total + weight * (value - mean) / deviation
                for total, value in zip(totals, values, strict=True)
            ]
    return max(map(abs, totals)) > EQUAL_WITHIN * sum(map(abs, weights.values()))


all_groups.keeps_all = True  # type: ignore[attr-defined]
mixed_outcomes.compares_responses = True  # type: ignore[attr-defined]

GroupFilter = Callable[[GroupOfTrajectories], bool]

GROUP_FILTERS: dict[str, GroupFilter] = {"all": all_groups, "mixed_outcomes": mixed_outcomes}


def all_answers(group: GroupOfTrajectories, draw: random.Random) -> list[Trajectory]:
    """Every response."""
    return list(group)


def best_random(group: GroupOfTrajectories, draw: random.Random) -> list[Trajectory]:
    """The response with the highest reward, and one of the others at random; the first of equally good ones.

    PF-PPO, Shen and Zhang 2024 (https://arxiv.org/abs/2409.06957), filter "best-random": a reward model errs least about its highest
    scores, so these are worth most, and the random one keeps the policy from seeing successes only.
    """
    best, others = _best_and_others(group)
    return [best, draw.choice(others)] if others else [best]


def best_worst(group: GroupOfTrajectories, draw: random.Random) -> list[Trajectory]:
    """The responses with the highest and the lowest reward; the first of equally good ones.

    PF-PPO, Shen and Zhang 2024 (https://arxiv.org/abs/2409.06957), filter "best-worst".
    """
    best, others = _best_and_others(group)
    return [best, min(others, key=lambda t: t.reward)] if others else [best]


def _best_and_others(group: GroupOfTrajectories) -> tuple[Trajectory, list[Trajectory]]:
    place = max(range(len(group)), key=lambda i: group[i].reward)
    return group[place], [*group[:place], *group[place + 1 :]]


def random_responses(
    group: GroupOfTrajectories, draw: random.Random, *, responses_to_learn_from: float
) -> list[Trajectory]:
    """A given number of the group's responses at random, in their order; all if there are fewer.

    For rewards that need many responses, such as a majority vote, where learning from a part of them is enough: TTRL, Zuo
    et al. 2025 (https://arxiv.org/abs/2504.16084), votes among 64 and learns from 32.
    """
    chosen = draw.sample(range(len(group)), _whole(responses_to_learn_from, len(group)))
    return [group[i] for i in sorted(chosen)]


def max_variance(
    group: GroupOfTrajectories, draw: random.Random, *, responses_to_learn_from: float
) -> list[Trajectory]:
    """The given number of the group's responses whose rewards vary most, in their order; all if there are fewer.

    Those are some with the highest and the others with the lowest rewards; of equal choices the one with most high ones, and of equal rewards
    the first. PODS, Xu et al. 2025 (https://arxiv.org/abs/2504.13818), max-variance down-sampling: sampling a response costs a
    third of learning from it, and what lies in the middle teaches least. As there, the advantages are then those of the chosen among
    themselves: of one right response and three wrong ones what all four have in common is neither made likelier nor less likely.
    """
    size = len(group)
    count = _whole(responses_to_learn_from, size)
    ranked = sorted(range(size), key=lambda i: -group[i].reward)
    ends = [[*ranked[:high], *ranked[size - count + high :]] for high in range(count, -1, -1)]
    chosen = max(ends, key=lambda places: pvariance([group[i].reward for i in places]))
    return [group[i] for i in sorted(chosen)]


def _whole(wanted: float, size: int) -> int:
    """algorithm.options.responses_to_learn_from for a group of this size. ValueError for what is no number of responses."""
    if wanted < 1 or int(wanted) != wanted:
        raise ValueError(
            f"algorithm.options.responses_to_learn_from={wanted}: must be a whole number, at least 1."
        )
    return min(int(wanted), size)


ResponseFilter = Callable[[GroupOfTrajectories, random.Random], list[Trajectory]]
"""A group with rewards and advantages, a source of chance -> the responses to learn from."""

best_random.most = best_worst.most = 2  # type: ignore[attr-defined]
max_variance.compares_chosen = True  # type: ignore[attr-defined]
max_variance.ranges = {"responses_to_learn_from": Range(2)}  # type: ignore[attr-defined]
random_responses.ranges = {"responses_to_learn_from": Range(1)}  # type: ignore[attr-defined]

RESPONSE_FILTERS: dict[str, Callable[..., list[Trajectory]]] = {
    "all": all_answers,
    "best_random": best_random,
    "best_worst": best_worst,
    "random_responses": random_responses,
    "max_variance": max_variance,
}


def high_entropy(
    entropy: Tensor,
    mask: Tensor,
    segments: Tensor,
    num_sequences: int,
    *,
    share: float,
    over: str,
    reduce: Callable[[Tensor], Tensor],
) -> Tensor:
    """(T,) weights: 0 but for the `share` of chosen tokens with the highest entropy, over the batch or per sequence.

    Wang et al. 2025, Beyond the 80/20 Rule (https://arxiv.org/abs/2506.01939), eq. 6: the few tokens at which a response could
    go another way carry the learning; they keep 20 % over the batch. At least `share` of the tokens, and all that are as
    uncertain as the last of them, so that order decides nothing. The weights make an average over all tokens one over
    the selected ones, as theirs is: (chosen tokens) / (selected tokens). `entropy` (T,) is that at sampling, in nats;
    theirs is that of the policy being updated. `reduce` sums over ranks.
    """
    # Non-negative float32 are ordered as their bits are: 31 questions "how many are at least this?" find the threshold
    # exactly, on any number of ranks, and nothing has to be gathered.
    bits = torch.where(mask, entropy.float().clamp(min=0.0), 0.0).view(torch.int32).long()
    place = segments if over == "sequence" else torch.zeros_like(segments)
    bins = num_sequences if over == "sequence" else 1

    def total(chosen: Tensor) -> Tensor:
        count = segment_count(chosen, place, bins)
        return count if over == "sequence" else reduce(count)

    wanted = torch.ceil(total(mask) * share - 1e-9)
    low, high = bits.new_zeros(bins), bits.new_full((bins,), 2**31 - 1)
    for _ in range(31):
        middle = (low + high + 1) // 2
        enough = total(mask & (bits >= middle[place])) >= wanted
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle - 1)
    selected = mask & (bits >= low[place])
    weight = (total(mask) / total(selected).clamp(min=1))[place]
    return torch.where(selected, weight, 0.0)
