"""How tokens are averaged into one loss: a weight per token, computed once per mini-batch.

A loss function returns one number per token and averages nothing. The trainer takes the sum of weights x loss
over every micro-batch and rank. The denominators are counted over the whole mini-batch on all ranks, so the
size of a micro-batch, the order of packing and the number of devices cannot change the update.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightrft.algorithms.segments import segment_count
from lightrft.types import Batch

Average = Literal["token", "sequence", "fixed", "group"]


def denominators(mask: Tensor, segments: Tensor, num_sequences: int) -> tuple[int, int]:
    """How many tokens are in the mask, and how many sequences have at least one. Sum both over all ranks.

    A sequence without a token to learn from (a response of zero tokens, or one masked out as truncated) is not
    counted: it has no loss, and counting it would shrink the step of all the others, so that weights no
    longer sum to 1.
    """
    lengths = segment_count(mask, segments, num_sequences)
    return int(lengths.sum()), int((lengths > 0).sum())


def learned_groups(batch: Batch) -> int:
    """How many groups have at least one token in the mask. Sum it over all ranks, none of which may share a group with another."""
    return int(batch.groups[batch.segments[batch.mask]].unique().numel())


def token_weights(
    batch: Batch, average: Average, max_tokens: int, tokens: int, sequences: int, owners: Tensor | None = None
) -> Tensor:
    """The weight of each token's loss, (T,), 0 outside the mask. `tokens`, `sequences`: `denominators` of all ranks; for `group` the number
    of groups (`learned_groups`) in the place of that of sequences. `owners` (S,): the response that each row is of; None: each is one.

    token     w = 1 / tokens                     Every token counts the same. DAPO, Yu et al. 2025
                                                 (https://arxiv.org/abs/2503.14476), eq. 12. Weights sum to 1.
    sequence  w = 1 / (sequences * own length)   Every response counts the same. GRPO, Shao et al. 2024
                                                 (https://arxiv.org/abs/2402.03300), eq. 3. Weights sum to 1.
    fixed     w = 1 / (sequences * max_tokens)   No response gains by its length. Dr.GRPO, Liu et al. 2025
                                                 (https://arxiv.org/abs/2503.20783), section 3.
    group     w = 1 / (groups * group's tokens)  Every prompt counts the same, however many responses it has. No group may be
                                                 divided over batches. Weights sum to 1.

    DAPO takes the tokens of one prompt's group, we take those of the whole mini-batch, as TRL does.
    """
    weights = batch.mask.to(batch.weights.dtype)
    if average == "token":
        return weights / max(tokens, 1)
    if average == "fixed":
        return weights / max(sequences * max_tokens, 1)
    if average == "group":
        names, inverse = batch.groups.unique(return_inverse=True)
        members = inverse[batch.segments]
        return weights / (
            max(sequences, 1) * segment_count(batch.mask, members, names.numel()).clamp(min=1)[members]
        )
    own = batch.segments if owners is None else owners[batch.segments]
    lengths = segment_count(batch.mask, own, batch.num_sequences).clamp(min=1)
    return weights / (max(sequences, 1) * lengths[own])
