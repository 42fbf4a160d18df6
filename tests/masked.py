"""Tiny masked diffusion language models for tests, and what they say computed with transformers' own class, a row at a time."""

from __future__ import annotations

import torch

from lightrft.config import Config, ModelConfig, RolloutConfig, TaskConfig, UnmaskConfig, UpdateConfig
from lightrft.engines.unmask import unmasker
from lightrft.models.masked import MaskedWords
from lightrft.models.tiny import tiny_model
from lightrft.types import Message, Record

MASK = 260
TEXTS = ("ab", "what is 1 + 2?", "xyz")


def settings(*, path="random:masked", max_tokens=6, temperature=1.0, **unmask):
    """Settings with these of rollout.unmask."""
    rollout = RolloutConfig(
        engine="unmask", max_tokens=max_tokens, temperature=temperature, unmask=UnmaskConfig(**unmask)
    )
    return Config(
        model=ModelConfig(path=str(path)),
        rollout=rollout,
        tasks=TaskConfig(train={"tiny": 1.0}),
        update=UpdateConfig(tokens_per_micro_batch=512),
    )


def made(config, dtype=torch.float32):
    """The kind, the model, and its engine."""
    kind = MaskedWords.of(config)
    module = kind.source(learns=False).full().to(dtype)
    return kind, module, unmasker(module, kind.processor, config.rollout)


def prompts(kind, texts=TEXTS):
    """Texts as prompts."""
    return [
        kind.processor.prompt(Record(f"q{n}", [Message(role="user", content=text)], "", "tiny"))
        for n, text in enumerate(texts)
    ]


class Plain:
    """The same model by transformers alone."""

    def __init__(self, module, *, dtype=torch.float64):
        self.model = tiny_model("masked", attention="sdpa").to(dtype)
        self.model.load_state_dict(module.state_dict())

    @torch.no_grad()
    def __call__(self, tokens):
        """(N, V) logits of one row; the mask is never said."""
        logits = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        logits[:, MASK] = -torch.inf
        return logits


def as_oracle(plain, t, options, temperature=1.0):
    """log p of each token of a response, from the definitions: slow, one row for each token."""
    prompt, steps, size = t.prompt.token_ids, t.states[:, 0].tolist(), int(t.states[0, 1])
    found = []
    for place, token in enumerate(t.token_ids):
        seen = size
        if options.context == "blocks":
            seen = min(size, options.block * (place // options.block + 1))
        row = [t.token_ids[i] if i < len(t) and steps[i] < steps[place] else MASK for i in range(seen)]
        logits = plain(prompt + row)[len(prompt) + place - (options.predicts == "next")] / temperature
        found.append(float(logits.log_softmax(-1)[token]))
    return found
