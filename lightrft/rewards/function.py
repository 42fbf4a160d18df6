"""What a reward is: a plain function over one answer, or over whole groups of answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightrft.rewards.signature import Asked, asked_of, asked_of_one, in_lists, refuse_async, refuse_lacking
from lightrft.rewards.views import READ


@dataclass(frozen=True, slots=True)
class Question:
    """What a reward may see of a Prompt, under the same names."""

    id: str
    messages: list[Any]
    target: Any
    source: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the row that any reward asks for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reward may see of a Trajectory, under the same names: no columns, no media, no prompt tokens.

    A class of its own because it travels to a process that is to start without importing torch.
    """

    prompt: Question
    group: int
    token_ids: list[int]
    answer: str
    finish: str
    said: list[Any] = field(default_factory=list)
    step_rewards: list[float] = field(default_factory=list)
    made: Mapping[str, Any] = field(default_factory=dict)
    """What was made besides text, by kind: {"image": (H, W, 3) uint8 array}, and {"clip": (F, H, W, 3)} where frames were drawn."""
    replied: int = 0
    """How many of the tokens are replies of an environment."""

    def __len__(self) -> int:
        return len(self.token_ids)


RewardFunction = Callable[[Sequence[Answer]], Sequence[float]]
"""Whole groups, in order, all of one task -> one number per answer."""


class PerAnswer:
    """A function of one answer, lifted to a RewardFunction; made by `each`."""

    def __init__(self, function: Callable[..., float]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__
        self.asked = asked_of_one(inspect.signature(function), self.__name__)
        self.parameters = list(self.asked.views)

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One reward for each answer, in their order."""
        return [self._one(answer) for answer in answers]

    def _one(self, answer: Answer) -> float:
        columns = answer.prompt.columns
        refuse_lacking(self.asked, self.__name__, answer.prompt.id, columns)
        given = {
            name: columns[name] for name in (*self.asked.required, *self.asked.optional) if name in columns
        }
        try:
            return number(self.function(**{name: READ[name](answer) for name in self.parameters}, **given))
        except Exception as error:
            error.add_note(f"while judging the response {answer.answer[:500]!r}")
            raise


class OverAll:
    """A function of all responses of a task, or of lists as TRL gives them, with fields of their rows; made by `as_reward`."""

    def __init__(self, function: Callable[..., Sequence[float]], asked: Asked) -> None:
        self.function, self.asked = function, asked
        self.__name__ = getattr(function, "__name__", type(function).__name__)
        self.__doc__ = function.__doc__

    def __call__(self, answers: Sequence[Answer]) -> Sequence[float]:
        """One reward for each answer, in their order."""
        for answer in answers:
            refuse_lacking(self.asked, self.__name__, answer.prompt.id, answer.prompt.columns)
        if self.asked.form == "lists":
            return self.function(**in_lists(self.asked, answers))
        fields = {name: [a.prompt.columns[name] for a in answers] for name in self.asked.required}
        return self.function(answers, **fields)


def each(function: Callable[..., float]) -> PerAnswer:
    """Lifts a function of one answer to a reward: `@each  def short(answer: str) -> float: ...`.

    Parameters are filled by name; a function takes those it needs of: answer, target, prompt (the last question as
    text), messages, source, finish ("stop", "length" or "turns"), num_tokens (that the policy chose), image ((H, W, 3) uint8,
    of a model that draws; of a clip the frame in its middle), clip ((F, H, W, 3) uint8, of one that draws clips); and of a conversation with an environment, of which
    `answer` is the last turn: said (the messages after the prompt) and step_rewards (of each turn). Any other name is a field of the row.
    """
    return PerAnswer(function)


def as_reward(found: Any, name: str) -> RewardFunction:
    """What a user named, as a RewardFunction, by its parameters (signature.py): called for each response, with all of a task, or in TRL's
    form.

    ValueError for what can be called in none of these ways.
    """
    if not callable(found):
        raise ValueError(f"reward '{name}' is a {type(found).__name__}, not a function.")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None)):  # noqa: B004  # to look at it
        refuse_async(name)
    if isinstance(found, PerAnswer):
        return found
    asked = asked_of(inspect.signature(found), name)
    if asked.form == "one":
        return each(found)
    if asked == Asked("all"):
        reward: RewardFunction = found
        return reward
    return OverAll(found, asked)


def values_of(function: RewardFunction, answers: Sequence[Answer]) -> list[float]:
    """The function's numbers, one per answer. TypeError or ValueError if they are not numbers, or not as many."""
    values = [number(value) for value in function(answers)]
    if len(values) != len(answers):
        raise ValueError(f"it returned {len(values)} values for {len(answers)} responses.")
    return values


def number(value: Any) -> float:
    """A float from any kind of number; TypeError for text or nothing."""
    if value is None or isinstance(value, str | bytes):
        raise TypeError(f"it returned {value!r}, which is not a number.")
    return float(value)
