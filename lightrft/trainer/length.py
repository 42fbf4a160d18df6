"""The soft penalty on responses that come close to the limit, taken off their rewards."""

from __future__ import annotations

from collections.abc import Iterable

from lightrft.algorithms.shaping import overlong_penalty
from lightrft.config import AlgorithmConfig
from lightrft.types import Trajectory


def penalise_length(answers: Iterable[Trajectory], algorithm: AlgorithmConfig, max_tokens: int) -> None:
    """Takes the soft overlong penalty off the rewards, in place. Groups are chosen by what was right, so before this."""
    if algorithm.overlong_buffer:
        for t in answers:
            t.parts["overlong"] = overlong_penalty(t.num_chosen, max_tokens, algorithm.overlong_buffer)
            t.reward -= algorithm.overlong_penalty * t.parts["overlong"]
