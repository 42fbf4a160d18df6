"""From the score of a response to a reward per token, and what is added to rewards and advantages."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightrft.algorithms.kl import KL
from lightrft.algorithms.segments import last_of_segment, segment_count, segment_sum
from lightrft.algorithms.selection import EQUAL_WITHIN
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Scores clipped to [-limit, limit], (S,); unchanged if limit is 0."""
    return scores.clamp(-limit, limit) if limit > 0 else scores


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """How much of the penalty a response of `length` tokens deserves, from 0 to 1.

    0 up to max_tokens - buffer, then rising in a straight line, 1 from max_tokens on. Minus this is the soft overlong
    punishment of DAPO, Yu et al. 2025 (https://arxiv.org/abs/2503.14476), eq. 13. Always 0 if buffer is 0.
    """
    return min(1.0, max(0.0, (length - (max_tokens - buffer)) / buffer)) if buffer else 0.0


def token_rewards(batch: Batch, algo: AlgorithmConfig) -> Tensor:
    """The reward of each token, (T,): the clipped score on the last chosen token; 0 outside the mask.

    With kl_in="reward", each chosen token also pays kl_coefficient times its divergence from the reference
    (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 2, per token as is usual): the estimate algo.kl
    at the old log-probs, so batch.old and batch.ref must be there. Only the score is clipped, never the
    penalty.
    """
    last = last_of_segment(batch.segments, mask=batch.mask)
    rewards = torch.where(last, clip_scores(batch.scores, algo.reward_clip)[batch.segments], 0.0)
    if algo.kl_in == "loss" or algo.kl_coefficient == 0:
        return rewards
    assert batch.old is not None, "a KL penalty in the reward needs the old log-probs"
    assert batch.ref is not None, "a KL penalty in the reward needs the reference log-probs"
    return rewards - torch.where(batch.mask, algo.kl_coefficient * KL[algo.kl](batch.old, batch.ref), 0.0)


def answer_rewards(batch: Batch, algo: AlgorithmConfig) -> Tensor:
    """The reward of each whole response, (S,): the sum of its token rewards (batch.rewards).

    A response without a chosen token (empty, or masked out as truncated) has no token to carry its score, but
    it was sampled and judged, and its siblings are compared with it: it counts with its clipped score.
    """
    assert batch.rewards is not None, "fill batch.rewards (token_rewards) before advantages"
    total = segment_sum(torch.where(batch.mask, batch.rewards, 0.0), batch.segments, batch.num_sequences)
    chosen = segment_count(batch.mask, batch.segments, batch.num_sequences)
    return torch.where(chosen > 0, total, clip_scores(batch.scores, algo.reward_clip).to(total.dtype))


def teacher_advantage(batch: Batch) -> Tensor:
    """log teacher - log policy of each token at sampling, (T,); 0 outside the mask.

    Minus the sampled divergence KL(policy || teacher), token by token, with no credit for later tokens. On-policy
    distillation: its mean is 0 where the policy is the teacher. Agarwal et al. 2023 (https://arxiv.org/abs/2306.13649) with the
    reverse divergence; as an advantage in Thinking Machines 2025 (https://thinkingmachines.ai/blog/on-policy-distillation).
    """
    assert batch.teacher is not None, "fill batch.teacher before the advantages"
    assert batch.old is not None, "a teacher in the advantage needs the old log-probs"
    return torch.where(batch.mask, batch.teacher - batch.old, 0.0)


@dataclass
class RunningMoments:
    """Count, mean and spread of all numbers seen so far, on all ranks."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared distances from the mean."""

    def see(self, values: Tensor, reduce: Callable[[Tensor], Tensor]) -> None:
        """Adds numbers; `reduce` sums a tensor over ranks and is called twice, also on a rank without any.

        The pairwise update of Chan, Golub and LeVeque 1979, eq. 2.1: exact however the numbers are cut into calls.
        """
        values = values.double()
        total, count = reduce(torch.stack([values.sum(), torch.ones_like(values).sum()])).tolist()
        mean = total / max(1.0, count)
        squares = float(reduce((values - mean).square().sum()))
        if count == 0:
            return
        both, apart = self.count + count, mean - self.mean
        self.squares += squares + apart * apart * self.count * count / both
        self.mean += apart * (count / both)
        self.count = both

    @property
    def variance(self) -> float:
        """Population variance; 0 before anything was seen."""
        return self.squares / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """Population deviation; 0 before anything was seen."""
        return math.sqrt(self.variance)

    def normalise(self, values: Tensor, *, shift: bool) -> Tensor:
        """Numbers in deviations, from the mean if `shift`; only shifted where all seen so far are equal."""
        centred = values - self.mean if shift else values
        return centred / self.deviation if self.deviation > EQUAL_WITHIN * abs(self.mean) else centred


def moments(values: Tensor, reduce: Callable[[Tensor], Tensor]) -> RunningMoments:
    """Mean and deviation of these numbers alone, over all ranks."""
    found = RunningMoments()
    found.see(values, reduce)
    return found
