"""Small true things to test with: tiny models, a byte tokenizer, batches by length. For our tests and for plugins'."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lightrft.models.processor import Processor
from lightrft.models.tiny import tiny_model, tiny_tokenizer
from lightrft.types import Completion, Prompt, Trajectory

__all__ = ["tiny_model", "tiny_processor", "tiny_prompt", "tiny_tokenizer", "tiny_trajectories"]


def tiny_processor() -> Processor:
    """One token per byte; ends with <|end|>."""
    tokenizer = tiny_tokenizer()
    return Processor(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer))


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
            answer = Completion([draw.randrange(256) for _ in range(n)], [-draw.random() for _ in range(n)], "stop")
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
