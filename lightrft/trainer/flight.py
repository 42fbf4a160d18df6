"""Responses that a thread samples while the step before theirs is judged and learned from."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lightrft.engines.base import EngineDiedError
from lightrft.parallel.status import STATUS
from lightrft.trainer.batching import rows_of
from lightrft.types import Prompt, Sampling, Trajectory

Group = list[Trajectory]
Tell = Callable[[int, int], None]
"""Called with the responses finished so far, and of how many."""

LOOK_SECONDS = 0.05
"""How often who waits looks whether the run was asked to stop."""
LEAVE_SECONDS = 10.0
"""How long a run that ends waits for the thread to leave its engine."""


class LeftError(Exception):
    """Nobody waits for the responses any more: the run ends."""


@dataclass(frozen=True)
class Order:
    """What is to be sampled for a step, on this rank; whoever samples it later needs nothing else."""

    step: int
    """The step that learns from it."""
    prompts: Sequence[Prompt]
    sampling: Sampling
    first_group: int
    """The number that groups are numbered from (trainer/rollout.py)."""

    def numbers(self) -> list[int]:
        """The number of each prompt's group."""
        first, stride = self.first_group + self.sampling.first_index, self.sampling.index_stride
        return [first + place * stride for place in range(len(self.prompts))]


class Flight:
    """Samples an order in a thread from now on. The weights of its engine must not change until it is over.

    Nothing of it calls other ranks, so that they may be elsewhere meanwhile.
    """

    def __init__(
        self,
        order: Order,
        sample: Callable[[Order, Tell], list[Group]],
        ended: Callable[[Flight], None] = lambda _: None,
    ) -> None:
        """`sample` gives the groups of an order; `ended` is told when that is over, in the thread."""
        self.order = order
        self.outdated = False
        """Whether the policy has been updated since: then all tokens are of older weights."""
        self.done: tuple[int, int] = (0, len(order.prompts) * order.sampling.n)
        """Responses finished so far, and of how many."""
        self.seconds = 0.0
        """How long it took, once it is over."""
        self._groups: list[Group] = []
        self._failure: Exception | None = None
        self._over, self._left = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=self._fly, args=(sample, ended), daemon=True, name="rollout of the next step"
        )
        self._thread.start()

    def _fly(self, sample: Callable[[Order, Tell], list[Group]], ended: Callable[[Flight], None]) -> None:
        start = time.perf_counter()
        try:
            self._groups = sample(self.order, self._tell)
        except Exception as error:  # raised where the responses are waited for
            self._failure = error
        self.seconds = time.perf_counter() - start
        self._over.set()
        ended(self)

    def _tell(self, finished: int, total: int) -> None:
        if self._left.is_set():
            raise LeftError
        self.done = finished, total
        STATUS.heartbeat()

    def wait(self, look: Callable[[], None] = lambda: None) -> None:
        """Until it is over, well or not; `look` is called meanwhile and may raise, which leaves it in the air."""
        while not self._over.wait(LOOK_SECONDS):
            look()

    @property
    def died(self) -> EngineDiedError | None:
        """The death of the engine that ended it; None where it went well. Any other failure is raised."""
        self.wait()
        if self._failure is None or isinstance(self._failure, EngineDiedError):
            return self._failure
        raise self._failure

    def groups(self) -> list[Group]:
        """Copies of the groups, which later steps may change; none where it failed. Waits until it is over."""
        self.wait()
        copies = [[apart(t) for t in group] for group in self._groups]
        if self.outdated:
            mark_older(copies)
        return copies

    def unanswered(self) -> list[Group]:
        """Where it failed: each prompt as a group of one response that has not begun, for a checkpoint."""
        self.wait()
        if self._failure is None:
            return []
        pairs = zip(self.order.prompts, self.order.numbers(), strict=True)
        return [[Trajectory(prompt, number, [], [], [], "paused")] for prompt, number in pairs]

    def leave(self) -> None:
        """Ends it at the next response, for a run that ends; waits a little for that."""
        self._left.set()
        self._thread.join(LEAVE_SECONDS)


def apart(t: Trajectory) -> Trajectory:
    """Copy of a response with lists of its own, which do not grow when it goes on."""
    return replace(
        t,
        token_ids=list(t.token_ids),
        mask=list(t.mask),
        behavior=list(t.behavior),
        columns=dict(t.columns),
        forks=[apart(fork) for fork in t.forks],
    )


def mark_older(groups: Sequence[Group]) -> None:
    """Notes that the weights have changed since all tokens of these were sampled."""
    for row in (row for group in groups for row in rows_of(group)):
        row.stale = len(row)
