"""The next step's responses are sampled while this step is judged and learned from: asynchronous, one step off-policy.

A step waits for the responses that were asked for it, gives the engine the present weights, asks for those of the next step, and learns. So every
response is from weights one step older than those that learn from it (rollout.max_staleness=1), which its log-probs at sampling
make up for in the ratio of the loss. Weights never change under a response: the engine is given new ones only between two rollouts,
so that what is sampled depends on the settings alone and not on how fast anything is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lightrft.engines.base import Keeping
from lightrft.rewards.base import RewardResult
from lightrft.strategy.memory import Phase
from lightrft.trainer.flight import Flight, Group
from lightrft.trainer.supply import Ahead

log = logging.getLogger("lightrft")


@dataclass
class Beside(Ahead):
    """Samples from the prompts of the next step beside everything that this step does after its own responses are there."""

    at_once: bool = True
    """Whether a step takes the responses that it asked for and no others, so that the engine is free when they are there. Otherwise
    (dynamic sampling) it is free when the step has enough groups."""
    ended: Callable[[Flight], None] = lambda _: None
    """Told of each rollout beside a step when it is over, in its thread."""
    _read: int = 0
    """Tokens that the engine had read when the last one began."""

    def draw(self, step: int, attempt: int, count: int) -> RewardResult:
        """Judged groups, those asked beside the step before first; while they are judged, the next step's may be asked."""
        self.settle()
        groups = self.due(step, attempt, count)
        if attempt == 1 and self.source.sampler.world.max(len(self.buffer.unfinished)):
            groups += self.source.ask(step, attempt, 0, again=True)  # of a resume; they end now
        if self.at_once:
            self.begin(step + 1, count)
        return self.source.judged(groups)

    def collected(self, step: int, count: int) -> None:
        """The next step's prompts are asked now, where they were not yet."""
        self.begin(step + 1, count)

    def begin(self, step: int, count: int) -> None:
        """Asks for a step's responses, from the weights that the engine has, unless that was done or no step needs them."""
        if self.buffer.asked >= step or step > self.last:
            return
        engine = self.source.sampler.engine
        self._read = engine.read_tokens if isinstance(engine, Keeping) else 0
        self.buffer.asked = step
        order = self.source.order(step, 1, count)
        self.buffer.flight = Flight(order, self.source.responses, self.ended)

    def settle(self) -> None:
        """Waits for what is sampled beside the step, so that the engine is free; called by all ranks before anything else uses it.

        Where the engine died on a rank it is started again, and that rank's prompts are asked again, from the present weights.
        """
        flight, sampler = self.buffer.flight, self.source.sampler
        if flight is None:
            return
        self.source.progress.phase("wait")
        with sampler.memory_plan(Phase.WAIT), sampler.world.independent():
            flight.wait(lambda: sampler.progress(*flight.done))
            died = flight.died
        self.buffer.flight = None
        groups = flight.groups()
        self.source.count(groups, flight.seconds, self._read)
        if sampler.world.max(died is not None):
            groups = self.repeated(flight, groups)
        self.buffer.prefetched += groups

    def repeated(self, flight: Flight, groups: list[Group]) -> list[Group]:
        """The groups of a rank whose engine lived, and those of the others asked again. By all ranks: they have new weights to give."""
        sampler = self.source.sampler
        with sampler.world.independent():
            if flight.died is not None:
                log.warning("the engine died beside the step before and is started again: %s", flight.died)
                flight.died.restart()
        sampler.forget()
        if flight.died is None:
            sampler(lambda: None)  # others give weights to their engines, and this one takes part
            return groups
        return self.source.sampled(flight.order)

    def close(self) -> None:
        """Ends what is sampled beside the step, for a run that ends."""
        if self.buffer.flight is not None:
            self.buffer.flight.leave()
