"""Small true things to test with: tiny models, a byte tokenizer, batches by length. For our tests and for plugins', with the
checks that every engine, reward, task and strategy must pass (a file for each)."""

from __future__ import annotations

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
from lightrft.testing.batches import make_batch, tiny_prompt, tiny_trajectories
from lightrft.testing.engines import check_engine
from lightrft.testing.rewards import Example, check_reward
from lightrft.testing.strategies import check_strategy
from lightrft.testing.tasks import check_task
from lightrft.types import Message, Prompt, Record

__all__ = [
    "Example",
    "check_engine",
    "check_reward",
    "check_strategy",
    "check_task",
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
        if tensor.is_floating_point() and torch.float32 in (*args[:1], kwargs.get("dtype")):
            args, kwargs = args[1:], kwargs | {"dtype": torch.float64}
        return to(tensor, *args, **kwargs)

    Tensor.float, Tensor.to = Tensor.double, wide  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Tensor.float, Tensor.to = cast, to  # type: ignore[method-assign]


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
