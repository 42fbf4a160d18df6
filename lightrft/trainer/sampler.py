"""The engine with the policy's present weights, in the phase in which it may sample; started again if it dies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor, nn

from lightrft.engines.base import Engine, EngineDiedError, EngineError
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardResult, RewardRunner
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.types import Trajectory

T = TypeVar("T")
log = logging.getLogger("lightrft")


class Policy(Protocol):
    """The model that an engine answers for: what a Trainable shows of itself to one."""

    @property
    def version(self) -> int:
        """Optimizer steps its weights have seen."""
        ...

    @property
    def is_averaged(self) -> bool:
        """Whether these are not the weights that learn, but an average of theirs (Trainable.averaged)."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names; called by all ranks."""
        ...

    def adapters_merged(self) -> AbstractContextManager[None]:
        """Inside, the model holds the weights that an engine should see (adapters folded in)."""
        ...


@dataclass(frozen=True)
class Unchanging:
    """A model that learns nothing, as a Policy."""

    module: nn.Module
    version: int = 0
    is_averaged: bool = False

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the module under its own names."""
        yield from self.module.state_dict().items()

    def adapters_merged(self) -> AbstractContextManager[None]:
        """Nothing to fold in."""
        return nullcontext()


@dataclass
class Sampler:
    """`sampler(draw)` calls `draw` where the engine may sample, from the policy's present weights.

    Used wherever responses are sampled: by training, by evaluation, by `lightrft check`, and where the policy judges itself.
    """

    engine: Engine
    policy: Policy
    memory_plan: MemoryPlan
    world: World
    restarts: int = 0
    """How often an engine that dies is started again in one call."""
    progress: Callable[[int, int], None] = lambda _finished, _total: None
    """For who samples to tell how many responses are finished, and of how many."""
    push: Callable[[], None] = field(init=False)
    """How weights come to the engine before it samples: `push_weights`, unless whoever holds the sampler has another way."""
    settle: Callable[[], None] = lambda: None
    """Waits until nothing is sampled beside the step, so that the engine is free; called by all ranks."""
    _pushed: tuple[int, bool] | None = None
    """Version of the weights that this process gave the engine, and whether they were an average; None before."""

    def __post_init__(self) -> None:
        self.push = self.push_weights

    def push_weights(self) -> None:
        """Gives the engine the policy's present weights, unless it has them; called by all ranks."""
        present = (self.policy.version, self.policy.is_averaged)
        if self._pushed == present and self.engine.weight_version == self.policy.version:
            return
        with self.memory_plan(Phase.SYNC), self.policy.adapters_merged():
            self.engine.load_weights(self.policy.weights())
            self.engine.weight_version = self.policy.version
            self._pushed = present

    def forget(self) -> None:
        """The engine was started again, and is given weights before it samples next."""
        self._pushed = None

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the engine may sample; other ranks may be at another place meanwhile."""
        self.settle()
        self.push()
        # An engine that shares the policy's module reads it while it samples, so adapters stay folded in.
        with self.memory_plan(Phase.ROLLOUT), self.policy.adapters_merged(), self.world.independent():
            yield

    def __call__(self, draw: Callable[[], T]) -> T:
        """The result of `draw`, called again if the engine died and was started anew. Called by all ranks.

        EngineError if it has died more than `restarts` times.
        """
        found: list[T] = []
        for attempt in range(self.restarts + 1):
            died: EngineDiedError | None = None
            with self.sampling():
                try:
                    # A rank that has its responses only takes part in giving weights to the engine again.
                    found = found or [draw()]
                except EngineDiedError as error:
                    died = error
            if not self.world.max(died is not None):
                break
            if attempt == self.restarts:
                continue
            with self.world.independent():
                if died is not None:
                    log.warning("the engine died and is started again: %s", died)
                    died.restart()
            self.forget()
        else:
            raise EngineError(
                f"the engine died {self.restarts + 1} times in one rollout (rollout.max_engine_restarts={self.restarts}), "
                f"at last: {died or 'on another rank'}"
            )
        return found[0]

    def judged(self, judge: RewardRunner, answers: Sequence[Trajectory]) -> RewardResult:
        """The responses with their rewards; called by all ranks."""
        return self.where_it_judges(judge, lambda: judge(answers))

    def where_it_judges(self, judge: RewardRunner, call: Callable[[], T]) -> T:
        """The result of `call`, made where the models of a judge are at hand: in the score phase, or as for sampling if it asks the policy."""
        if judge.by_policy:
            return self(call)
        with self.memory_plan(Phase.SCORE), self.world.independent():
            return call()
