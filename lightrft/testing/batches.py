"""Prompts, answers and batches of random bytes, by their lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightrft.types import Batch, Completion, Prompt, Trajectory


def tiny_prompt(length: int, *, seed: int = 0, source: str = "test") -> Prompt:
    """A prompt of `length` random byte tokens."""
    draw = random.Random(seed)
    tokens = [draw.randrange(256) for _ in range(length)]
    return Prompt(id=f"prompt-{seed}", token_ids=tokens, messages=[], target=None, source=source)


def tiny_trajectories(shape: Sequence[tuple[int, Sequence[int]]], *, seed: int = 0) -> list[Trajectory]:
    """Random answers: for each (prompt length, response lengths) one group. Rewards are random, masks all True."""
    draw = random.Random(seed)
    trajectories = []
    for group, (length, responses) in enumerate(shape):
        prompt = tiny_prompt(length, seed=1000 * seed + group)
        for n in responses:
            answer = Completion(
                [draw.randrange(256) for _ in range(n)], [-draw.random() for _ in range(n)], "stop"
            )
            trajectories.append(
                Trajectory(
                    prompt=prompt,
                    group=group,
                    token_ids=answer.token_ids,
                    mask=[True] * n,
                    behavior=answer.logprobs,
                    finish=answer.finish,
                    reward=float(draw.randrange(2)),
                )
            )
    return trajectories


def make_batch(
    lengths: Sequence[int],
    *,
    groups: Sequence[int] | None = None,
    scores: Sequence[float] | Tensor | None = None,
    mask: Sequence[bool] | Tensor | None = None,
    **columns: Sequence[float] | Tensor,
) -> Batch:
    """Answers of these lengths (0 is one), end to end, without model inputs; all in group 0 and all tokens chosen.

    The score is the only part of the reward. `columns` are (T,): old, ref, rewards, advantages, ...; lists become float32, tensors stay as they are.
    """
    num_tokens, num_sequences = sum(lengths), len(lengths)
    given: dict[str, Any] = {name: torch.as_tensor(value) for name, value in columns.items()}
    worth = torch.zeros(num_sequences) if scores is None else torch.as_tensor(scores)
    known = given.get("old", given.get("behavior", torch.zeros(num_tokens)))
    given = {"squares": torch.exp(2 * known), **given}  # as if all other tokens had no probability
    given = {"grades": worth[:, None], "part_weights": torch.ones(num_sequences, 1), **given}
    return Batch(
        segments=torch.repeat_interleave(
            torch.arange(num_sequences), torch.tensor(lengths, dtype=torch.int64)
        ),
        groups=torch.zeros(num_sequences, dtype=torch.int64)
        if groups is None
        else torch.tensor(groups, dtype=torch.int64),
        mask=torch.ones(num_tokens, dtype=torch.bool)
        if mask is None
        else torch.as_tensor(mask, dtype=torch.bool),
        scores=worth,
        **{"weights": torch.zeros(num_tokens), "behavior": torch.zeros(num_tokens), **given},
    )
