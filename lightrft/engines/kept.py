"""Responses whose keys and values outlive the call that sampled them: what an environment replied is all there is to read then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightrft.engines.pages import Cache, Stretch
from lightrft.types import Prompt


@dataclass(frozen=True, eq=False, slots=True)
class KeptAnswer:
    """What is in the cache of a response."""

    read: Stretch
    """The prompt, which siblings share."""
    own: Stretch
    """Tokens of the response, without the newest, which no pass has read."""
    tokens: list[int]
    """Tokens of the prompt and of the response."""
    begin: list[int]
    """Position of the response's first token in each row; see trainer/batching.py."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.read.length + self.own.length

    def begins(self, prompt: Prompt) -> bool:
        """Whether the prompt goes on with this response: begins with all that is in the cache, and has more."""
        known = self.length
        return len(prompt.token_ids) > known and prompt.token_ids[:known] == self.tokens[:known]


class Kept:
    """Responses of a rollout that may go on, by their random stream.

    They take room in the cache as running ones do: `shrink` gives back those that were kept longest.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache, self._answers = cache, dict[int, KeptAnswer]()

    def put(self, stream: int, answer: KeptAnswer) -> None:
        """Keeps a response that is over for now."""
        self._answers[stream] = answer

    def take(self, prompt: Prompt) -> KeptAnswer | None:
        """What is kept of the response that the prompt goes on with; None if that must be read again."""
        found = None if prompt.continuation is None else self._answers.pop(prompt.continuation.stream, None)
        if found is None or found.begins(prompt):
            return found
        self._give_back([found])  # it began anew, as where its environment failed
        return None

    def shrink(self, most: int) -> None:
        """Gives back all but so many."""
        gone = list(self._answers)[: max(0, len(self._answers) - most)]
        self._give_back([self._answers.pop(stream) for stream in gone])

    def clear(self) -> None:
        """Gives all back."""
        self.shrink(0)

    def _give_back(self, answers: Iterable[KeptAnswer]) -> None:
        give_back(self._cache, [(answer.read, answer.own) for answer in answers])


def give_back(cache: Cache, answers: Iterable[tuple[Stretch, Stretch]]) -> None:
    """Frees the pages of responses, each with its prompt's, which the last one of its holders frees."""
    own, read = list[Stretch](), list[Stretch]()
    for prompt, answer in answers:
        own.append(answer)
        prompt.holders -= 1
        if not prompt.holders:
            read.append(prompt)
    cache.answers.give_back(page for stretch in own for page in stretch.pages)
    cache.prompts.give_back(page for stretch in read for page in stretch.pages)
