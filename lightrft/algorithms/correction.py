"""How far the engine that sampled and the trainer that learns disagree about the same tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def mismatch(logprobs: Tensor, behavior: Tensor, mask: Tensor) -> Tensor:
    """|log p by the trainer - log p by the engine| of each token, (T,); 0 outside the mask.

    `logprobs` must come from the weights that sampled: the old log-probs, or the new ones before the first
    update. Its mean and maximum belong in the log from the first step on. A mean that grows although the
    learning rate is 0 is a bug, no rounding. A sampled token that the trainer finds impossible gives
    infinity, which is meant.
    """
    return torch.where(mask, (logprobs.detach() - behavior).abs(), 0.0)
