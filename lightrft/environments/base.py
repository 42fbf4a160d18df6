"""What an environment is: a gymnasium environment whose actions and observations are text. Structural; nothing to inherit.

Imports no torch: the processes that run environments start with this.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

Observation = str | Sequence[Mapping[str, Any]]
"""What an environment says: text, or messages with `role` and `content`; "" says nothing."""


class Environment(Protocol):
    """One episode at a time: `reset`, then `step` with each turn of the policy until it is over, then `close`.

    The form of gymnasium (https://gymnasium.farama.org), whose environments with text in and text out run as they are. `reset`
    gets of `seed` and `options` what it takes, and `close` may be missing.

    Example (a guessing game; the reward of its steps is the reward `environment`):
        >>> class Higher:
        ...     def reset(self, *, seed, options):
        ...         self.wanted = seed % 10
        ...         return "", {}
        ...     def step(self, action):
        ...         right = action.strip() == str(self.wanted)
        ...         return "no" * (not right), float(right), right, False, {}
    """

    def reset(self, *, seed: int, options: Mapping[str, Any]) -> tuple[Observation, Mapping[str, Any]]:
        """Begins an episode. `options` is the row: id, messages, target and source. All responses of a group get the same seed, and
        the first observations must be equal then: they become a part of the prompt, or all of it, where the information says
        `whole_prompt`. Schemas of `tools` in it are told to the policy there."""
        ...

    def step(self, action: str) -> tuple[Observation, float, bool, bool, Mapping[str, Any]]:
        """What the policy said in this turn -> observation, reward, terminated, truncated, info. Numbers under info["counts"] are
        added up as metrics environment/NAME. An episode that is cut for its turns or tokens is asked for `final_reward()`, where it has
        that method.

        With environment.forks, info["past"] = (row, turns) says what the observation stands behind: the first `turns` turns of the policy in
        one row of the conversation, of which row 0 was the first. Unless that is the end of the row, a new row begins there."""
        ...


class ToolError(Exception):
    """Raised by a tool: the policy is told the text. Whatever else a tool raises is a failure of the environment."""


@dataclass(frozen=True, slots=True)
class Spec:
    """An environment for a process to make."""

    name: str
    """Built-in, or the import path of a class or function that makes one."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of it."""
    calls: str = "json"
    """How calls are written, for a built-in one that reads them."""
    seconds: float = 0.0
    """Longest time for the calls of one turn, for the same."""

    @property
    def text(self) -> str:
        """The spec as the one word by which worker processes know a function."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def parsed(cls, text: str) -> Spec:
        """The spec of `text`."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Begin:
    """Asks for a new episode."""

    episode: int
    seed: int
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Act:
    """Says one turn of the policy to an episode."""

    episode: int
    action: str
    truncated: bool = False
    """Whether the turn was cut at its limit; told to environments whose `step` takes `truncated`."""


@dataclass(frozen=True, slots=True)
class End:
    """Ends episodes, whether or not they are over."""

    episodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finish:
    """Asks an episode that has to end for a last reward, where it has a method `final_reward`, and ends it."""

    episode: int


@dataclass(frozen=True, slots=True)
class Describe:
    """Asks for the tools that the policy is to be told of."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment answers."""

    messages: tuple[dict[str, str], ...] = ()
    """Messages with role and content, before which the policy may speak again; a role of "" is for the caller to choose."""
    reward: float = 0.0
    done: bool = False
    whole_prompt: bool = False
    """Whether the messages, an episode's first, are the prompt in place of the row's."""
    tools: tuple[dict[str, Any], ...] = ()
    """Schemas, in OpenAI's form, that the prompt of an episode which begins tells the policy of."""
    counts: dict[str, float] = field(default_factory=dict)
    past: tuple[int, int] | None = None
    """Row of the conversation, and how many turns of it, that the messages stand behind; None: the last turn."""


@dataclass(frozen=True, slots=True)
class Lost:
    """The answer for an episode that this process does not hold: another took the place of the one that did."""


Order = Begin | Act | Finish | End | Describe


def messages_of(said: Observation, *, first: bool = False) -> tuple[dict[str, str], ...]:
    """An observation as messages of text; half a surrogate pair, which no tokenizer takes, is a question mark in it.

    `first`: examples of what an assistant said may be among them. TypeError or ValueError for what is neither text nor such messages.
    """
    if isinstance(said, str):
        return ({"role": "", "content": _whole(said)},) if said else ()
    if not isinstance(said, Sequence):
        raise TypeError(f"the observation is a {type(said).__name__}, not text or a list of messages.")
    found = []
    for message in said:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise TypeError(f"{message!r} in an observation is no message with a text as `content`.")
        role = str(message.get("role", ""))
        if role == "assistant" and not first:
            raise ValueError(
                "an observation holds a message of role 'assistant': the policy alone speaks there."
            )
        found.append({"role": role, "content": _whole(message["content"])})
    return tuple(found)


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def taken(function: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a function takes, of those given."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}
