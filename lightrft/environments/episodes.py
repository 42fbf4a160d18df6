"""Episodes of environments, held by worker processes: begun, spoken to and ended by their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightrft.config import EnvironmentConfig, SandboxConfig
from lightrft.config.environment import USUAL_SECONDS
from lightrft.environments.base import Act, Begin, Describe, End, Finish, Lost, Order, Reply, Spec
from lightrft.environments.host import load
from lightrft.utils.errors import RolloutError
from lightrft.utils.paths import with_home
from lightrft.workers.boxes import USUAL
from lightrft.workers.pool import Allowed, Call, Failure, Inline, Pool, Runner, Work

WORK = Work(
    "lightrft.environments.host:load",
    noun="environment",
    limit="environment.timeout_seconds",
    memory="environment.memory_gb",
)
"""Environments, as worker processes load and name them."""


class EnvironmentFailedError(RolloutError, RuntimeError):
    """An environment failed more often than environment.retries allows."""

    boundary = "environment"


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer of an environment that raised, hung or died, and the reason."""

    reason: str
    """Empty where another episode took this one with it: its process was ended."""


def spec_of(config: EnvironmentConfig) -> Spec:
    """The environment that settings name: one by name, or the tools. ~/ in an option is the home folder."""
    if not config.name:
        return Spec("tools", {"tools": list(config.tools)}, config.calls, calls_limit(config))
    return Spec(config.name, config.further(with_home), config.calls, calls_limit(config))


def calls_limit(config: EnvironmentConfig) -> float:
    """Seconds for the calls of one turn."""
    usual = min(USUAL_SECONDS, config.timeout_seconds / 2) if config.workers else USUAL_SECONDS
    return config.calls_seconds or usual


class Episodes:
    """Episodes of one kind of environment. Use it as a context manager, or call close(), to end the worker processes."""

    def __init__(self, config: EnvironmentConfig, sandbox: SandboxConfig = USUAL) -> None:
        """`sandbox`: where tools run programs of the policy. ValueError for an environment or a tool that is not there."""
        self.spec, self._config = spec_of(config), config
        self._text, self._next = self.spec.text, 0
        self._runner: Runner[Any]
        if config.workers:
            allowed = Allowed(config.memory_gb, tuple(config.variables))
            work = replace(WORK, settings=sandbox)
            self._runner = Pool(work, [self._text], config.workers, config.timeout_seconds, allowed)
        else:
            self._runner = Inline({self._text: load(self._text, sandbox)})

    def schemas(self) -> list[dict[str, Any]]:
        """The tools that the policy may be told of, in OpenAI's form. ValueError if the environment cannot be made."""
        (found,) = self._run([Describe()], [0])
        if isinstance(found, Failure):
            raise ValueError(f"environment.name={self.spec.name} cannot be made: {last_line(found.reason)}")
        schemas: list[dict[str, Any]] = found
        return schemas

    def begin(self, wanted: Sequence[tuple[int, dict[str, Any]]]) -> list[tuple[int, Reply | Failed]]:
        """A new episode for each (seed, row): its number, and what it says first."""
        first = self._next
        self._next += len(wanted)
        orders = [Begin(first + place, seed, row) for place, (seed, row) in enumerate(wanted)]
        found = self._asked(orders, [order.episode for order in orders])
        return list(zip(range(first, self._next), found, strict=True))

    def step(self, said: Sequence[tuple[int, str, bool]]) -> list[Reply | Failed]:
        """The replies to turns: (episode, text, whether it was cut)."""
        return self._asked([Act(*turn) for turn in said], [episode for episode, _, _ in said])

    def finish(self, episodes: Sequence[int]) -> list[Reply | Failed]:
        """The last rewards of episodes that have to end."""
        return self._asked([Finish(episode) for episode in episodes], episodes)

    def end(self, episodes: Iterable[int]) -> None:
        """Ends episodes, of whatever state."""
        by_worker: dict[int, list[int]] = {}
        for episode in episodes:
            by_worker.setdefault(self._worker(episode), []).append(episode)
        self._run([End(tuple(held)) for held in by_worker.values()], [held[0] for held in by_worker.values()])

    def close(self) -> None:
        """Ends the worker processes."""
        self._runner.close()

    def __enter__(self) -> Episodes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _worker(self, episode: int) -> int:
        return episode % max(1, self._config.workers)

    def _run(self, orders: Sequence[Order], episodes: Sequence[int]) -> Sequence[Any]:
        calls = [
            Call(self._text, order, self._worker(episode))
            for order, episode in zip(orders, episodes, strict=True)
        ]
        return self._runner.run(calls)

    def _asked(self, orders: Sequence[Order], episodes: Sequence[int]) -> list[Reply | Failed]:
        answers: list[Reply | Failed] = []
        for found in self._run(orders, episodes):
            if isinstance(found, Failure):
                answers.append(Failed(found.reason.strip()))
            else:
                answers.append(Failed("") if isinstance(found, Lost) else found)
        return answers


def last_line(reason: str) -> str:
    """What went wrong, of a traceback or a sentence."""
    return reason.strip().rsplit("\n", 1)[-1]
