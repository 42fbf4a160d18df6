"""Prompts on their way through the native engine, and the responses to them: waiting, running or done."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightrft.engines.kept import Kept, KeptAnswer
from lightrft.engines.pages import Cache, Stretch
from lightrft.models.supports import Growing
from lightrft.types import Completion, Finish, Prompt, Sampling


@dataclass(eq=False, slots=True)
class Question:
    """A prompt on its way: waiting, then read, until its last answer is done."""

    place: int
    prompt: Prompt
    waiting: list[int]
    """Numbers of the answers that have not entered, last first."""
    read: Stretch
    own: Stretch | None
    """What is in the cache of the answer that the prompt goes on with, if that was kept."""
    begin: list[int]
    """Position of an answer's first token in each row; see trainer/batching.py."""
    hidden: Tensor | None = None
    """(1, H), what predicts the first token of every answer."""
    experts: Tensor | None = None
    """(n, M, K) of its tokens that were read in this call, if they are to be told."""

    @classmethod
    def of(cls, place: int, prompt: Prompt, sampling: Sampling, cache: Cache, kept: Kept | None) -> Question:
        """A prompt that nothing was read of, or all but the end that is new to an answer that was kept."""
        waiting, found = numbers(prompt, sampling), kept and kept.take(prompt)
        if found:
            return cls(place, prompt, waiting, found.read, found.own, found.begin)
        rows = prompt.positions
        begin = [len(prompt.token_ids)] if rows is None else (rows[:, -1] + 1).tolist()
        return cls(place, prompt, waiting, Stretch(cache.prompts, 0, holders=len(waiting)), None, begin)

    def __len__(self) -> int:
        """Tokens that no pass has read."""
        return len(self.prompt.token_ids) - self.read.length - (self.own.length if self.own else 0)

    def positions(self, count: int) -> Tensor:
        """(R, count) or (1, count), of its last tokens."""
        if self.own is not None:
            end = self.own.length
            return torch.tensor(self.begin)[:, None] + torch.arange(end - count, end)
        rows = self.prompt.positions
        return torch.arange(count)[None] if rows is None else rows


@dataclass(eq=False, slots=True)
class Answer:
    """A response on its way, from its first token on."""

    question: Question
    stream: int
    own: Stretch
    most: int
    """Tokens it may have in all."""
    tokens: list[int]
    """Tokens sampled so far, in earlier calls too."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probs of the tokens sampled in this call."""
    finish: Finish | None = None
    since: int = 0
    """Place of the first token in which a stop text counts."""
    experts: list[Tensor] = field(default_factory=list)
    """(M, K) of each token that was read in this call, if they are to be told."""
    support: Growing = field(default_factory=Growing)
    """What the tokens sampled in this call were drawn among, if that is to be told."""

    def completion(self, version: int) -> Completion:
        """The tokens sampled in this call; those of earlier calls are left out."""
        new = self.tokens[len(self.tokens) - len(self.logprobs) :]
        told = None if self.question.experts is None else [*self.question.experts, *self.experts]
        experts = None if told is None else torch.stack(told)
        support = self.support.so_far()
        finish = self.finish or "length"
        return Completion(new, self.logprobs, finish, version, self.stream, experts=experts, support=support)

    def to_keep(self) -> KeptAnswer:
        """What may go on later."""
        question = self.question
        continued = 0 if question.prompt.continuation is None else question.prompt.continuation.tokens
        prompt = question.prompt.token_ids[: len(question.prompt.token_ids) - continued]
        return KeptAnswer(question.read, self.own, [*prompt, *self.tokens], question.begin)


def numbers(prompt: Prompt, sampling: Sampling) -> list[int]:
    """Indices of the samples still to generate for a prompt, in reverse order."""
    return list(range(sampling.n if prompt.continuation is None else 1))[::-1]
