"""Step capsules of a training run: when one is written, and what goes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from lightrft.config import Config
from lightrft.parallel.world import World
from lightrft.runs.capsule import Capsules, weights_hash
from lightrft.runs.folder import settings_text
from lightrft.strategy.in_memory import snapshot
from lightrft.trainer.learn import Learner
from lightrft.trainer.metrics import average
from lightrft.types import Trajectory
from lightrft.utils.seeding import generator_states

Metrics = dict[str, float]


@dataclass
class Capture:
    """Writes a capsule of a step before the update that makes it worth one; see runs/capsule.py."""

    capsules: Capsules
    config: Config
    world: World
    learner: Learner

    @contextmanager
    def of(
        self, step: int, trajectories: Sequence[Trajectory]
    ) -> Iterator[tuple[Callable[[int, float | None], None], list[Metrics]]]:
        """A function to call before each update, and a list for what each update reports; recorded at the end, however it comes."""
        captured = False
        updates: list[Metrics] = []

        def before_update(index: int, norm: float | None) -> None:
            nonlocal captured
            spiked = norm is not None and self.capsules.spike(norm)  # is to be told every norm
            wanted = spiked or (index == 0 and self.capsules.wanted(step))
            if wanted and not captured and self.world.size == 1:  # a capsule is of one process
                captured = True
                self.write(step, index, trajectories)

        try:
            yield before_update, updates
        finally:
            if captured:
                self.capsules.record(step, updates, average(updates))

    def write(self, step: int, index: int, trajectories: Sequence[Trajectory]) -> None:
        """The step as it stands now, before its update number `index`."""
        actor, given = self.learner.actor, self.config.algorithm.mismatch_correction
        row = replace(self.learner.algorithm.config, mismatch_correction=given)  # not what `auto` became
        self.capsules.write(
            step,
            trajectories=trajectories,
            state=snapshot(actor),
            config_yaml=settings_text(replace(self.config, algorithm=row)),
            weights_hash=weights_hash(actor.weights()),
            rng=generator_states(),
            weight_version=actor.version,
            start=index,
        )
