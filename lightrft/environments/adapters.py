"""Environments in the shapes that other projects have, as ours: none of them is imported, each is known by its methods."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lightrft.environments.base import Observation
from lightrft.environments.tools import Tools


def adapted(environment: Any) -> Any:
    """The environment with `reset` and `step` as in base.py: itself, or an adapter around another shape. TypeError for none of them."""
    if hasattr(environment, "init") and hasattr(environment, "step"):
        return SkyRL(environment)
    if hasattr(environment, "reset") and not hasattr(environment, "step"):
        return Methods(environment)
    if not hasattr(environment, "reset"):
        raise TypeError(
            f"{type(environment).__name__} is no environment: it has no `reset`. See docs/environments.md for what one has."
        )
    return environment


class SkyRL:
    """An environment of SkyRL-gym: `init(prompt)`, and `step(action)` that returns a table."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    def reset(self, *, options: Mapping[str, Any]) -> tuple[Observation, Mapping[str, Any]]:
        """What it adds to the prompt, or all of a prompt that it changes."""
        asked = [dict(message) for message in options["messages"]]
        prompt, _ = self._environment.init([dict(message) for message in asked])
        if list(prompt[: len(asked)]) != asked:
            return prompt, {"whole_prompt": True}
        return prompt[len(asked) :], {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, Mapping[str, Any]]:
        """One step, item by item."""
        found = self._environment.step(action)
        return found["observations"], found["reward"], found["done"], False, {}

    def close(self) -> None:
        """Closes it, where it can be closed."""
        _close(self._environment)


class Methods:
    """An environment of TRL (`environment_factory`): `reset(**row)`, methods that are tools and, perhaps, `get_reward`.

    TRL takes a method `close` for a tool as well; here it ends the episode, and the policy is not told of it.
    """

    def __init__(self, environment: Any) -> None:
        """ValueError for a method that cannot be a tool."""
        self._environment, self._tools = environment, Tools([])
        for name, _ in inspect.getmembers(type(environment), predicate=inspect.isfunction):
            if name not in ("reset", "get_reward", "close") and not name.startswith("_"):
                self._tools.add(getattr(environment, name))

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """What the prompt says of the methods."""
        return self._tools.schemas

    def reset(self, *, options: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """What its reset says, with the row as keyword arguments: prompt (its messages), id, target and source."""
        row = {("prompt" if name == "messages" else name): value for name, value in options.items()}
        return self._environment.reset(**row) or "", {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, Mapping[str, Any]]:
        """Answers the calls of a turn; one without any ends the episode, and has the reward of it."""
        said, _, over, cut, info = self._tools.step(action)
        return said, self.final_reward() if over else 0.0, over, cut, info

    def final_reward(self) -> float:
        """The reward of an episode as it stands."""
        return float(self._environment.get_reward()) if hasattr(self._environment, "get_reward") else 0.0

    def close(self) -> None:
        """Closes it, where it can be closed."""
        _close(self._environment)


def _close(environment: Any) -> None:
    if hasattr(environment, "close"):
        environment.close()
