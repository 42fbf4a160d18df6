"""Small true things to test with: tiny models, a byte tokenizer, batches by length. For our tests and for plugins', with the
checks that every engine must pass (engines.py)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightrft.media.parts import KINDS
from lightrft.models.export import save_model
from lightrft.models.processor import Processor
from lightrft.models.tiny import tiny_model, tiny_tokenizer
from lightrft.testing.engines import check_engine
from lightrft.types import Batch, Completion, Message, Prompt, Record, Trajectory

__all__ = [
    "check_engine",
    "keep_double",
    "make_batch",
    "media_prompts",
    "tiny_folder",
    "tiny_model",
    "tiny_processor",
    "tiny_prompt",
    "tiny_tokenizer",
    "tiny_trajectories",
]


def tiny_processor() -> Processor:
    """One token per byte; ends with <|end|>."""
    tokenizer = tiny_tokenizer()
    return Processor(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer))


def tiny_folder(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """A Hugging Face folder with a tiny model and the byte tokenizer; `changes` override the model's config."""
    save_model(tiny_model(family, seed=seed, **changes), tiny_processor(), folder)
    return folder


@contextmanager
def keep_double() -> Iterator[None]:
    """Inside, float64 stays float64: transformers casts to float32 in its norms, whatever the model's type.

    For comparisons to the last digits with a model made `.double()`. Backward passes belong inside as well, since
    checkpointed layers are computed again there.
    """
    cast, to = Tensor.float, Tensor.to

    def wide(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_cast = args[:1] == (torch.float32,) and tensor.is_floating_point()
        return to(tensor, torch.float64) if is_cast else to(tensor, *args, **kwargs)

    Tensor.float, Tensor.to = Tensor.double, wide  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Tensor.float, Tensor.to = cast, to  # type: ignore[method-assign]


def tiny_prompt(length: int, *, seed: int = 0, source: str = "test") -> Prompt:
    """A prompt of `length` random byte tokens."""
    draw = random.Random(seed)
    tokens = [draw.randrange(256) for _ in range(length)]
    return Prompt(id=f"prompt-{seed}", token_ids=tokens, messages=[], target=None, source=source)


def media_prompts(processor: Processor, kinds: Sequence[str]) -> list[Prompt]:
    """Questions about random pictures and clips, one medium after words and two around them for each kind; and one without."""
    draw = np.random.default_rng(0)

    def medium(kind: str) -> dict[str, Any]:
        if kind == "audio":
            return {kind: {"array": draw.normal(size=16_000).astype("float32"), "sampling_rate": 16_000}}
        shape = (56, 56, 3) if kind == "image" else (4, 56, 56, 3)
        return {kind: draw.integers(0, 255, shape, dtype=np.uint8)}

    def question(name: str, *parts: str) -> Prompt:
        content = [
            {"type": part, **medium(part)} if part in KINDS else {"type": "text", "text": part}
            for part in parts
        ]
        message: Message = {"role": "user", "content": content}
        return processor.open(processor.prompt(Record(name, [message], None, "test")))

    asked = [question("without", "what?")]
    for kind in kinds:
        asked += [
            question(f"one {kind}", "what is ", kind),
            question(f"two {kind}s", kind, " or ", kind, "?"),
        ]
    return asked


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

    `columns` are (T,): old, ref, rewards, advantages, ...; lists become float32, tensors stay as they are.
    """
    num_tokens, num_sequences = sum(lengths), len(lengths)
    given: dict[str, Any] = {name: torch.as_tensor(value) for name, value in columns.items()}
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
        scores=torch.zeros(num_sequences) if scores is None else torch.as_tensor(scores),
        **{"weights": torch.zeros(num_tokens), "behavior": torch.zeros(num_tokens), **given},
    )
