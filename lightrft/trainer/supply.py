"""Where the judged groups of a step come from: asked now, in pieces over several steps, or one step ahead.

What samples while the trainer learns stands in trainer/asynchronous.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from lightrft.config import Config
from lightrft.console.progress import Progress
from lightrft.datasets.loader import PromptLoader
from lightrft.engines.base import Keeping
from lightrft.models.processor import Processor
from lightrft.rewards.base import RewardResult, RewardRunner
from lightrft.strategy.memory import Phase
from lightrft.trainer.batching import rows_of
from lightrft.trainer.buffer import RolloutBuffer
from lightrft.trainer.flight import Group, Order, Tell
from lightrft.trainer.rollout import rollout, training_sampling
from lightrft.trainer.sampler import Sampler
from lightrft.trainer.turns import Turns
from lightrft.types import Prompt, Trajectory
from lightrft.utils.seeding import derive_seed


class Supply(Protocol):
    """A source of judged responses in whole groups. Chosen when the run is built (build/assemble.py), so that no step asks which it is."""

    @property
    def weight_version(self) -> int:
        """Updates seen by the policy's present weights."""
        ...

    def draw(self, step: int, attempt: int, count: int) -> RewardResult:
        """The responses to `count` new prompts of this rank, or what is there of them by now. `attempt` counts the prompts
        asked in a step, from 1; with `count` 0 nothing new is asked. Called by all ranks."""
        ...

    def collected(self, step: int, count: int) -> None:
        """Told when a step has all its groups, judged: what needs the engine next may begin. Called by all ranks."""
        ...

    def spent(self) -> tuple[int, float]:
        """Tokens sampled on this rank since it was last asked, and the seconds that took."""
        ...

    def counted(self) -> dict[str, float]:
        """What environments and the engine counted on this rank since it was last asked: metric -> number."""
        ...


@dataclass
class Fresh:
    """Samples and waits for every response: all come from the weights that learn from them."""

    config: Config
    sampler: Sampler
    prompts: PromptLoader
    processor: Processor
    judge: RewardRunner
    progress: Progress
    turns: Turns | None = None
    """What replies to the policy, where anything does."""
    _spent: tuple[int, float] = (0, 0.0)
    _read: int = 0
    """Tokens that the engine has read for these responses."""

    @property
    def weight_version(self) -> int:
        """Updates seen by the policy's present weights; an engine may have dropped its own by now."""
        return self.sampler.policy.version

    def draw(self, step: int, attempt: int, count: int) -> RewardResult:
        """Groups of `count` new prompts, sampled and judged."""
        return self.judged(self.ask(step, attempt, count))

    def ask(self, step: int, attempt: int, count: int, *, again: bool = False) -> list[Group]:
        """Whole groups, not judged yet. `again`: prompts were taken for this attempt before, whose random streams are taken."""
        return self.sampled(self.order(step, attempt, count, again=again))

    def order(self, step: int, attempt: int, count: int, *, again: bool = False) -> Order:
        """What to sample for `count` new prompts, which are drawn now."""
        # A group is numbered by the place of its prompt in the run's sequence of draws, which is in checkpoints and only grows:
        # whatever is asked twice, waits or comes back under other settings, no two groups are ever taken for one.
        first_group = self.prompts.position
        return self.order_of(step, self.seed(step, attempt, again), self.prompts.draw(count), first_group)

    def order_of(self, step: int, seed: int, prompts: Sequence[Prompt], first_group: int) -> Order:
        """What to sample for these prompts, whose groups are numbered from there."""
        sampling = training_sampling(self.config.rollout, seed, self.sampler.world)
        return Order(step, prompts, sampling, first_group)

    def seed(self, step: int, attempt: int, again: bool) -> int:
        """What fixes the random streams of an attempt's responses."""
        return derive_seed(self.config.seed, step, attempt, int(again))

    def judged(self, groups: Sequence[Group]) -> RewardResult:
        """The responses of these groups with their rewards."""
        self.progress.phase("score")
        return self.sampler.judged(self.judge, [t for group in groups for t in group])

    def sampled(self, order: Order, unfinished: Sequence[Trajectory] = (), most_now: int = 0) -> list[Group]:
        """The groups of an order, where the engine may sample; `unfinished` responses go on in place. No response gets more than
        `most_now` tokens, if set. Called by all ranks."""
        memory_plan, engine = self.sampler.memory_plan, self.sampler.engine
        before, start = sum(map(len, unfinished)), memory_plan.seconds.get(Phase.ROLLOUT, 0.0)
        read = engine.read_tokens if isinstance(engine, Keeping) else 0
        self.progress.phase("rollout")
        groups = self.sampler(lambda: self.responses(order, self.sampler.progress, unfinished, most_now))
        tokens = sum(map(len, unfinished)) - before
        self.count(groups, memory_plan.seconds.get(Phase.ROLLOUT, 0.0) - start, read, tokens)
        return groups

    def responses(
        self, order: Order, tell: Tell, unfinished: Sequence[Trajectory] = (), most_now: int = 0
    ) -> list[Group]:
        """The groups of an order from the engine as it is; calls no other rank."""
        return rollout(
            self.sampler.engine,
            order.prompts,
            order.sampling,
            self.processor,
            first_group=order.first_group,
            unfinished=unfinished,
            most_now=most_now,
            turns=self.turns,
            progress=tell,
        )

    def count(self, groups: Sequence[Group], seconds: float, read: int, more: int = 0) -> None:
        """Adds the tokens of these groups and `more`, the time they took, and what the engine has read since it had read `read`."""
        tokens = more + sum(row.num_chosen for group in groups for row in rows_of(group))
        self._spent = self._spent[0] + tokens, self._spent[1] + seconds
        engine = self.sampler.engine
        self._read += engine.read_tokens - read if isinstance(engine, Keeping) else 0

    def collected(self, step: int, count: int) -> None:
        """Nothing begins before the next step."""

    def spent(self) -> tuple[int, float]:
        """Tokens sampled and seconds of sampling since the last call."""
        spent, self._spent = self._spent, (0, 0.0)
        return spent

    def counted(self) -> dict[str, float]:
        """Counts of environments, and tokens that the engine read; they begin anew."""
        counts = {} if self.turns is None else self.turns.counted()
        if isinstance(self.sampler.engine, Keeping):
            counts["rollout/read_tokens"], self._read = float(self._read), 0
        return counts


@dataclass
class Partial(Fresh):
    """Lets no response take more than rollout.max_tokens_per_step in a step: longer ones go on in the next (partial rollout).

    So the longest responses do not hold up a step; they begin with tokens of older weights, which `stale` counts.
    """

    buffer: RolloutBuffer = field(kw_only=True)
    """Where groups wait whose responses are not finished."""

    def ask(self, step: int, attempt: int, count: int, *, again: bool = False) -> list[Group]:
        """The groups, waiting or new, that are whole now."""
        waiting = self.buffer.take_unfinished()
        going_on = [t for group in waiting for t in group if t.finish == "paused"]
        most_now = self.config.rollout.max_tokens_per_step
        order = self.order(step, attempt, count, again=again)
        groups = waiting + self.sampled(order, going_on, most_now)
        cut = [any(t.finish == "paused" for t in group) for group in groups]
        self.buffer.unfinished = [group for group, waits in zip(groups, cut, strict=True) if waits]
        return [group for group, waits in zip(groups, cut, strict=True) if not waits]


@dataclass
class Ahead:
    """Samples from the prompts of the next step while the rewards of this one are computed (one step off-policy).

    Engine and rewards work at the same time; what is asked ahead is sampled before the update of this step.
    """

    source: Fresh
    buffer: RolloutBuffer
    """Where what was asked ahead waits for its step."""
    last: int
    """No step after it is asked for ahead."""

    @property
    def weight_version(self) -> int:
        """Updates seen by the policy's present weights."""
        return self.source.weight_version

    def draw(self, step: int, attempt: int, count: int) -> RewardResult:
        """Judged groups, those asked ahead first; while they are judged, the next step's are asked."""
        groups = self.due(step, attempt, count)
        if self.buffer.asked > step or step >= self.last:
            return self.source.judged(groups)
        self.buffer.asked = step + 1
        return self.judged_meanwhile(groups, count)

    def due(self, step: int, attempt: int, count: int) -> list[Group]:
        """The groups of this attempt, not judged yet: those asked ahead, or new ones where there are none."""
        groups = (self.buffer.take_prefetched() + self.asked_again(step)) if attempt == 1 else []
        if not self.source.sampler.world.max(len(groups)):
            # Otherwise the other ranks have theirs, and all responses of this one are unfinished. Where those that were asked
            # ahead are unfinished on every rank, or were learned from a step early, others are asked in their place.
            again = attempt == 1 and self.buffer.asked >= step
            groups = self.source.ask(step, attempt, count, again=again)
        return groups

    def asked_again(self, step: int) -> list[Group]:
        """The groups of prompts that were asked ahead before a resume and had no responses yet. Called by all ranks."""
        source, lost = self.source, self.buffer.take_unanswered()
        if not source.sampler.world.max(len(lost)):
            return []
        seed = source.seed(step, 1, again=True)
        groups = source.sampled(
            source.order_of(step, seed, [group[0].prompt for group in lost], first_group=0)
        )
        for (asked,), group in zip(lost, groups, strict=True):
            for t in group:
                t.group = asked.group
        return groups

    def collected(self, step: int, count: int) -> None:
        """The next step is asked while this one is judged, not later."""

    def judged_meanwhile(self, groups: Sequence[Group], count: int) -> RewardResult:
        """The responses with their rewards, which are computed while as many prompts of the next step are sampled from."""
        source, pool = self.source, ThreadPoolExecutor(max_workers=1)
        try:
            judging = pool.submit(source.judge, [t for group in groups for t in group])
            self.buffer.prefetched = source.ask(self.buffer.asked, 1, count)
            source.progress.phase("score")
            with source.sampler.memory_plan(Phase.SCORE), source.sampler.world.independent():
                return judging.result()
        finally:
            # Where sampling failed nobody waits for rewards: the run ends.
            pool.shutdown(wait=False, cancel_futures=True)

    def spent(self) -> tuple[int, float]:
        """Tokens sampled and seconds of sampling since the last call."""
        return self.source.spent()

    def counted(self) -> dict[str, float]:
        """What the source has counted."""
        return self.source.counted()
