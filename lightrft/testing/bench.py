"""An engine beside a transformers model that says what is right: what the checks of engines ask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightrft.engines.base import Engine, give
from lightrft.models.families import placeholders
from lightrft.types import Completion, Prompt, Sampling

LENGTHS = (1, 40, 3, 130, 17, 64)
"""Tokens of the questions."""
LOADED = 5
"""The version that is stamped on the weights."""


@dataclass(frozen=True)
class Bench:
    """An engine, and a transformers model that says what is right."""

    engine: Engine
    reference: Any
    """Model with the same weights in float32 and with an attention of transformers' own."""
    decode: Callable[[list[int]], str]
    tolerance: float
    requests: int
    media: Sequence[Prompt] = ()
    """Questions about media, read."""

    @property
    def never(self) -> list[int]:
        """Tokens that no answer may hold."""
        return placeholders(self.reference.config)

    def prompts(self) -> list[Prompt]:
        """Prompts of very unequal lengths."""
        return [self.prompt(length, seed) for seed, length in enumerate(LENGTHS)]

    def prompt(self, length: int, seed: int) -> Prompt:
        """Prompt of `length` random tokens."""
        draw = torch.Generator().manual_seed(seed)
        most = min(200, self.reference.config.get_text_config().vocab_size)
        tokens = torch.randint(most, (length,), generator=draw).tolist()
        return Prompt(id=f"prompt-{seed}", token_ids=tokens, messages=[], target=None, source="check")

    def greedy(self, prompts: list[Prompt], tokens: int = 12, **more: Any) -> list[Completion]:
        """The likeliest answer to each."""
        sampling = Sampling(**{"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, **more})
        return [answers[0] for answers in self.engine.generate(prompts, sampling)]

    def expected(self, prompt: Prompt, tokens: int = 12) -> list[int]:
        """Greedy tokens that transformers gives."""
        ids = torch.tensor([prompt.token_ids])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        options["suppress_tokens"] = self.never or None
        out = self.reference.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **options
        )
        found: list[int] = out[0, ids.shape[1] :].tolist()
        return found

    def distributions(self, prompt: Prompt, answer: Completion, temperature: float) -> Tensor:
        """(L, V) log-probs of all tokens where an answer has its own, by one forward pass."""
        ids = torch.tensor([[*prompt.token_ids, *answer.token_ids]])
        with torch.no_grad():
            logits: Tensor = (
                self.reference(ids).logits[0, len(prompt.token_ids) - 1 : -1].float() / temperature
            )
        logits[:, self.never] = -torch.inf
        return logits.log_softmax(-1)

    def logprobs(self, prompt: Prompt, answer: Completion, temperature: float) -> Tensor:
        """(L,) of an answer's tokens."""
        found = self.distributions(prompt, answer, temperature)
        return found.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]

    def give(self) -> None:
        """Loads the reference's present weights, each tensor once: a head that is tied comes with the embeddings."""
        weights = ((name, p.detach()) for name, p in self.reference.named_parameters())
        give(self.engine, weights, LOADED)


Check = Callable[[Bench], None]
