"""How far the engine that sampled and the trainer that learns disagree about the same tokens, and what to do about it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lightrft.algorithms.kl import MAX_EXPONENT
from lightrft.algorithms.segments import segment_mean, segment_sum
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch


def mismatch(logprobs: Tensor, behavior: Tensor, mask: Tensor) -> Tensor:
    """|log p by the trainer - log p by the engine| of each token, (T,); 0 outside the mask.

    `logprobs` must come from the weights that sampled: the old log-probs, or the new ones before the first
    update. Its mean and maximum belong in the log from the first step on. A mean that grows although the
    learning rate is 0 is a bug, no rounding. A sampled token that the trainer finds impossible gives
    infinity, which is meant.
    """
    return torch.where(mask, (logprobs.detach() - behavior).abs(), 0.0)


def on_policy(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Tensor:
    """(T,) 0 for tokens of bad responses that the policy has left too far behind, else 1.

    0 where A_t < 0 and the mean over the response's chosen tokens of log q - log p is above algo.off_policy_mask_limit, q the engine's
    probability at sampling and p that of the policy as it is. Off-policy sequence masking, DeepSeek-V3.2 2025
    (https://arxiv.org/abs/2512.02556), eq. 9.
    """
    assert batch.advantages is not None, "fill batch.advantages before the loss"
    left = segment_mean(batch.behavior - new.detach(), batch.segments, batch.num_sequences, mask=batch.mask)
    masked = batch.mask & (batch.advantages < 0) & (left > algo.off_policy_mask_limit)[batch.segments]
    return 1 - masked.to(new.dtype)


def importance(logprobs: Tensor, batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The weight of each token's policy loss, (T,), without gradient, and what is worth logging.

    With p the trainer's and q the engine's probability of a token under the weights that sampled (`logprobs` and
    batch.behavior), rho = p / q per token, the product of these over the chosen tokens of the response
    (mismatch_level="sequence", which is unbiased but varies more) or their geometric mean ("sequence_mean"), C = mismatch_limit, and
    c = mismatch_floor, or 1 / C where that is 0:

        none        1                              auto too: whoever knows the engine says which it means (requirements.py)
        truncate    min(rho, C)                    TIS, Yao et al. 2025, Your Efficient RL Framework Secretly Brings You
                                                   Off-Policy RL Training (https://fengyao.notion.site/off-policy-rl);
                                                   V-trace's truncation (Espeholt et al. 2018,
                                                   https://arxiv.org/abs/1802.01561)
        mask        rho if c <= rho <= C else 0    what the two disagree about too much is not learned from (IcePop, Ling team 2025,
                                                   https://arxiv.org/abs/2510.18855; masked importance sampling)
        reject      1 if c <= rho <= C else 0      the same without a weight: rejection sampling, as verl's rollout_rs

    Logged whatever is set: rho per token (mismatch/ratio) and its square, for the effective sample size, and the share of tokens
    whose weight the limits change or would change (mismatch/beyond_limit).
    """
    difference = torch.where(batch.mask, logprobs.detach() - batch.behavior, 0.0)
    token_ratio = difference.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp()
    ratio = token_ratio
    if algo.mismatch_level != "token":
        over = segment_sum if algo.mismatch_level == "sequence" else partial(segment_mean, mask=batch.mask)
        total = over(difference, batch.segments, batch.num_sequences)
        ratio = total.clamp(-MAX_EXPONENT, MAX_EXPONENT).exp()[batch.segments]
    limit, kind = algo.mismatch_limit, algo.mismatch_correction
    beyond = ratio > limit
    if kind in ("mask", "reject"):
        beyond = beyond | (ratio < (algo.mismatch_floor or 1 / limit))
    metrics = {
        "mismatch/ratio": token_ratio,
        "mismatch/square": token_ratio.square(),
        "mismatch/beyond_limit": beyond.to(ratio.dtype),
    }
    if kind in ("auto", "none"):
        return torch.ones_like(ratio), metrics
    if kind == "truncate":
        return ratio.clamp(max=limit), metrics
    return torch.where(beyond, 0.0, ratio if kind == "mask" else 1.0), metrics
