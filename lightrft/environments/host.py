"""The episodes that one process holds: makes environments, and gives each order to the one it is for.

Imports no torch: this is what a worker process runs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from lightrft.config.sandbox import SandboxConfig
from lightrft.environments.adapters import adapted
from lightrft.environments.agent import Agent
from lightrft.environments.base import (
    Act,
    Begin,
    Describe,
    End,
    Finish,
    Lost,
    Order,
    Reply,
    Spec,
    messages_of,
    taken,
)
from lightrft.environments.mcp import MCP
from lightrft.environments.openenv import OpenEnv
from lightrft.environments.repair import Repair
from lightrft.environments.search import Search
from lightrft.environments.tools import Tools
from lightrft.utils.imports import resolve

ENVIRONMENTS: Mapping[str, Callable[..., Any]] = {
    "agent": Agent,
    "mcp": MCP,
    "openenv": OpenEnv,
    "repair": Repair,
    "search": Search,
    "tools": Tools,
}
"""The built-in environments by name; each makes one."""


def load(spec: str, sandbox: SandboxConfig) -> Host:
    """What a worker runs for the environment of a spec, see `Spec.text`. ValueError as from `resolve`."""
    wanted = Spec.parsed(spec)
    make = resolve(ENVIRONMENTS, wanted.name, "environment")
    settings = {"sandbox": sandbox, "calls": wanted.calls, "seconds": wanted.seconds}
    return Host(make, (taken(make, settings) if wanted.name in ENVIRONMENTS else {}) | wanted.options)


class Host:
    """Environments of one kind, by the number of their episode."""

    def __init__(self, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self._make, self._options = make, options
        self._episodes: dict[int, Any] = {}

    def __call__(self, order: Order) -> Any:
        """A Reply or Lost to Begin and Act, the schemas of tools to Describe, nothing to End; raises what the environment raises."""
        if isinstance(order, Describe):
            return self._describe()
        if isinstance(order, End):
            for episode in order.episodes:
                self._end(episode)
            return None
        try:
            if isinstance(order, Begin):
                return self._begin(order)
            return self._act(order) if isinstance(order, Act) else self._finish(order)
        except BaseException:
            self._end(order.episode)  # what failed is begun anew under another number
            raise

    def _describe(self) -> list[dict[str, Any]]:
        environment = adapted(self._make(**self._options))
        try:
            return list(getattr(environment, "schemas", ()))
        finally:
            _close(environment)

    def _begin(self, order: Begin) -> Reply:
        self._end(order.episode)
        environment = self._episodes[order.episode] = adapted(self._make(**self._options))
        found = environment.reset(**taken(environment.reset, {"seed": order.seed, "options": order.row}))
        said, info = found if isinstance(found, tuple) else (found, {})
        tools, whole = tuple((info or {}).get("tools", ())), bool((info or {}).get("whole_prompt"))
        return Reply(messages_of(said, first=True), whole_prompt=whole, tools=tools)

    def _act(self, order: Act) -> Reply | Lost:
        environment = self._episodes.get(order.episode)
        if environment is None:
            return Lost()
        more = taken(environment.step, {"truncated": order.truncated})
        said, reward, terminated, truncated, info = environment.step(order.action, **more)
        reward, counts = finite(reward), dict((info or {}).get("counts", {}))
        done = bool(terminated or truncated)
        if done:
            self._end(order.episode)
        counted = {str(name): float(count) for name, count in counts.items()}
        return Reply(messages_of(said), reward, done, counts=counted, past=past_of(info or {}))

    def _finish(self, order: Finish) -> Reply | Lost:
        environment = self._episodes.get(order.episode)
        if environment is None:
            return Lost()
        last = getattr(environment, "final_reward", None)
        reward = finite(last()) if last is not None else 0.0
        self._end(order.episode)
        return Reply(reward=reward, done=True)

    def _end(self, episode: int) -> None:
        _close(self._episodes.pop(episode, None))


def _close(environment: Any) -> None:
    close = getattr(environment, "close", None)
    if close is not None:
        with contextlib.suppress(Exception):  # it is over, whatever its end says
            close()


def past_of(info: Mapping[str, Any]) -> tuple[int, int] | None:
    """What an observation stands behind, where the information tells it. TypeError for what is no pair of numbers."""
    found = info.get("past")
    if found is None:
        return None
    if not isinstance(found, (tuple, list)) or [type(n) for n in found] != [int, int]:
        raise TypeError(f"info['past'] is {found!r}, not (row, turns).")
    return found[0], found[1]


def finite(reward: Any) -> float:
    """A reward as a number. ValueError for one that is none."""
    value = float(reward)
    if not math.isfinite(value):
        raise ValueError(f"a step's reward is {value}.")
    return value
