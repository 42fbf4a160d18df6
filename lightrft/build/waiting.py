"""The responses that wait in a checkpoint, by the settings that they were sampled with."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightrft.config import Config
from lightrft.trainer.buffer import SAMPLED_BY, waiting_by_settings

log = logging.getLogger("lightrft")


def waiting_in(
    config: Config, state: Mapping[str, Any] | None
) -> Iterator[tuple[Mapping[str, float], int, int]]:
    """On each rank, by what groups of a checkpoint were sampled with: those that wait to be learned from, and those of earlier steps that replay
    may draw."""
    if state is None:
        return
    oldest = state["done"] + 1 - config.replay.max_age if config.replay.groups_per_step else math.inf
    for packed in state["ranks"]["buffer"]:
        yield from waiting_by_settings(packed, oldest)


def check_sampling_mask(config: Config, state: Mapping[str, Any] | None) -> None:
    """A warning if the sampling mask is kept now, and responses wait in a checkpoint whose mask was not."""
    if not config.rollout.keep_sampling_mask:
        return
    counts = [[*of] for settings, *of in waiting_in(config, state) if settings.get(SAMPLED_BY[1])]
    waiting, again = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
    if waiting + again:
        log.warning(
            "rollout.keep_sampling_mask=true: %d groups that wait in the checkpoint, and %d that may be learned from again, were sampled with top_k, "
            "first_token_top_k, top_p or min_p while it was false, so nobody knows what their tokens were drawn among: the trainer goes on "
            "taking their log-probs of the whole vocabulary",
            waiting, again,
        )  # fmt: skip
