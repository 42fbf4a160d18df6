"""From the score of an answer to a reward per token."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrft.algorithms.kl import KL
from lightrft.algorithms.segments import last_of_segment, segment_count, segment_sum
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Scores cut to [-limit, limit], (S,); unchanged if limit is 0."""
    return scores.clamp(-limit, limit) if limit > 0 else scores


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """How much of the penalty an answer of `length` tokens deserves, from 0 to 1.

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
    """The reward of each whole answer, (S,): the sum of its token rewards (batch.rewards).

    An answer without a chosen token (empty, or masked out as truncated) has no token to carry its score, but
    it was drawn and judged, and its siblings are compared with it: it counts with its clipped score.
    """
    assert batch.rewards is not None, "fill batch.rewards (token_rewards) before advantages"
    total = segment_sum(torch.where(batch.mask, batch.rewards, 0.0), batch.segments, batch.num_sequences)
    chosen = segment_count(batch.mask, batch.segments, batch.num_sequences)
    return torch.where(chosen > 0, total, clip_scores(batch.scores, algo.reward_clip).to(total.dtype))
