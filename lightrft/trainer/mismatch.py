"""Whether the engine that sampled and the trainer agree about the log-probs of the same tokens under the same weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from lightrft.config import Config
from lightrft.parallel.world import World

log = logging.getLogger("lightrft")

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1 / 8}
"""Engine and trainer may differ by this much in a token's log-prob: the largest in float32, the mean in the others, of which float16
has three bits more."""


@dataclass
class Agreement:
    """Warns, once in a run, if the engine's log-probs are not those of the trainer."""

    config: Config
    world: World
    correction: str = "none"
    """algorithm.mismatch_correction as it acts in this run; empty with a loss that reads none."""
    _told: bool = False

    def check(self, metrics: Mapping[str, float], *, from_a_part: bool = False) -> None:
        """Looks at mismatch/... of one step. What was sampled from a part of the distribution that the trainer does not know differs anyway, and
        so do steps with responses of before a resume that were (`from_a_part`: on this rank). Called by all ranks."""
        meant = self.world.max(from_a_part) or self.config.rollout.samples_from_a_part
        if meant or self._told or "mismatch/max" not in metrics:
            return
        told = disagreement(self.config, metrics["mismatch/mean_abs"], metrics["mismatch/max"])
        if told and self.world.is_first:
            log.warning("%s It is logged as mismatch/*%s", told, against(self.correction))
        self._told = bool(told)


def against(correction: str) -> str:
    """How a sentence about a mismatch ends: what weighs against it, or what would."""
    if not correction:
        return "."
    if correction == "none":
        return "; nothing weighs against it, algorithm.mismatch_correction=truncate would."
    return f"; algorithm.mismatch_correction={correction} weighs against it."


def disagreement(config: Config, mean: float, largest: float) -> str:
    """What to say if they differ by more than their arithmetic explains, with likely causes; empty if they do not."""
    dtype = config.model.dtype
    limit = TOLERANCE[dtype]
    found, name = (largest, "largest") if dtype == "float32" else (mean, "mean")
    if found <= limit:
        return ""
    return (
        f"engine and trainer do not agree: the {name} difference is {found:.2g}, usual for {dtype} is at most {limit:g}. Likely causes: other weights in the "
        "engine than in the trainer, another temperature, sampling settings that truncate the distribution, another prompt (template), "
        "or attention that is computed differently (compare with model.attention=separate)."
    )
