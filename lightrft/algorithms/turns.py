"""Rewards of single turns, where an environment gives each turn of a conversation a reward of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrft.algorithms.segments import segment_sum
from lightrft.algorithms.selection import EQUAL_WITHIN
from lightrft.types import Batch


def turn_of_token(batch: Batch) -> Tensor:
    """(T,) int64, which turn of its response the policy chose a token in, from 0; tokens between count to the turn before them."""
    mask, segments = batch.mask, batch.segments
    goes_on = torch.zeros_like(mask)
    goes_on[1:] = mask[:-1] & (segments[1:] == segments[:-1])
    begun = (mask & ~goes_on).long().cumsum(0)
    first = torch.full((batch.num_sequences,), begun.numel() + 1).to(begun)
    first = first.scatter_reduce(0, segments[mask], begun[mask], "amin")
    return (begun - first[segments]).clamp(min=0)


def turns_apart(batch: Batch, epsilon: float) -> Tensor:
    """(T,) float64: the reward of each token's turn beside that of the same turn of the siblings, (r_ik - mean(r_k)) / (std(r_k) + epsilon).

    Sample deviations. A turn that one response alone has, or in which all are equal, gives exactly 0.
    """
    assert batch.turn_rewards is not None, "there are no rewards of turns"
    if not batch.num_tokens:
        return batch.turn_rewards.double()
    turn = turn_of_token(batch)
    _, group = torch.unique(batch.groups, return_inverse=True)
    shape = batch.num_sequences, int(turn.max()) + 1
    place = batch.segments * shape[1] + turn
    rewards = segment_sum(
        torch.where(batch.mask, batch.turn_rewards, 0.0).double(), place, shape[0] * shape[1]
    ).view(shape)
    there = segment_sum(batch.mask.double(), place, shape[0] * shape[1]).view(shape) > 0
    return torch.where(batch.mask, _apart(rewards, there, group, epsilon).flatten()[place], 0.0)


def _apart(rewards: Tensor, there: Tensor, group: Tensor, epsilon: float) -> Tensor:
    """(S, K) float64: each turn's reward in deviations of its siblings' of the same turn; 0 where there are none to compare with."""
    groups = int(group.max()) + 1
    index = group[:, None].expand_as(rewards)
    zeros = rewards.new_zeros(groups, rewards.shape[1])
    size = zeros.scatter_add(0, index, there.double())
    mean = zeros.scatter_add(0, index, torch.where(there, rewards, 0.0)) / size.clamp(min=1)
    high = zeros.scatter_reduce(0, index, torch.where(there, rewards, -torch.inf), "amax", include_self=False)
    low = zeros.scatter_reduce(0, index, torch.where(there, rewards, torch.inf), "amin", include_self=False)
    equal = (high - low <= EQUAL_WITHIN * torch.maximum(high.abs(), low.abs())) | (size < 2)
    centred = torch.where(there & ~equal[group], rewards - mean[group], 0.0)
    squares = zeros.scatter_add(0, index, centred.square())
    deviation = (squares / (size - 1).clamp(min=1)).sqrt()[group]
    return centred / (deviation + epsilon)
