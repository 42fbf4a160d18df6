"""The rank that is slow, phase by phase: the slowest sets the pace of all."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from statistics import fmean, median

import torch

from lightrft.parallel.world import World
from lightrft.strategy.memory import MemoryPlan

log = logging.getLogger("lightrft")

SLOW_FACTOR = 1.5
"""Times the median of all ranks from which on a rank counts as slow."""
SLOW_SECONDS = 1.0
"""And slower than the median by at least this."""
SLOW_STEPS = 5
"""Steps in a row in which the same rank is slow before it is worth a warning."""


@dataclass
class Stragglers:
    """Looks at the time of every rank once a step."""

    world: World
    _slow: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Phase -> rank that was slow in the last steps, and in how many."""

    def seconds(self, memory_plan: MemoryPlan, step_seconds: float) -> dict[str, float]:
        """Metrics seconds/... of a step, over all ranks, memory/device/..., of what was moved to and from host memory, and straggler/... with several; called by all ranks.

        Forgets the times of the memory_plan. A phase takes as long as on the rank where it took longest; compared is what a rank
        worked, without what it waited for others in World's exchanges. Waiting inside a backend's own exchanges counts
        as work, so that a sharded model evens out the ranks of `train`.
        """
        working = memory_plan.working_seconds()
        whole = memory_plan.reset_seconds() | {"step": step_seconds}
        found = {f"seconds/{phase}": s for phase, s in self.world.max_by_name(whole).items()}
        peaks = self.world.max_by_name(memory_plan.reset_peaks())
        found |= {f"memory/device/{phase}": gib for phase, gib in peaks.items()}
        copied = float(self.world.sum(torch.tensor(memory_plan.reset_copied(), dtype=torch.float64)))
        busy = self.world.max_by_name({"link": memory_plan.reset_link_seconds()})["link"]
        if copied:
            found["counts/offload_gib"] = copied / 2**30
            found["offload/gib_per_second"] = copied / 2**30 / self.world.size / max(busy, 1e-9)
        if self.world.size == 1:
            return found
        ranks = self.world.gather(working)
        for phase in sorted({name for rank in ranks for name in rank}):
            times = [rank.get(phase, 0.0) for rank in ranks]
            slowest = max(range(len(times)), key=times.__getitem__)
            found[f"straggler/{phase}"] = times[slowest] / max(fmean(times), 1e-9)
            found[f"straggler/rank/{phase}"] = float(slowest)
            self._warn(phase, slowest, times[slowest], median(times))
        return found

    def _warn(self, phase: str, rank: int, seconds: float, usual: float) -> None:
        if seconds < SLOW_FACTOR * usual or seconds - usual < SLOW_SECONDS:
            self._slow.pop(phase, None)
            return
        before, steps = self._slow.get(phase, (rank, 0))
        self._slow[phase] = (rank, steps + 1 if before == rank else 1)
        if self._slow[phase][1] == SLOW_STEPS and self.world.is_first:
            log.warning(
                "rank %d is slow: %.1f s in phase %s, where others take %.1f s, for %d steps. Look at its machine (`nvidia-smi`, `top`).",
                rank, seconds, phase, usual, SLOW_STEPS,
            )  # fmt: skip
