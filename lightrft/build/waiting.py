"""The responses that wait in a checkpoint, by the settings that they were sampled with, and whether those of now can go on with them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.requirements import correction_of
from lightrft.config import Config
from lightrft.trainer.buffer import SAMPLED_AT, SAMPLED_BY, waiting_by_settings

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


def check_sampled_at(config: Config, state: Mapping[str, Any] | None) -> None:
    """ValueError if responses wait in a checkpoint, also those to be learned from again, whose log-probs are of another temperature."""
    for settings, waiting, again in waiting_in(config, state):
        for name in SAMPLED_AT:
            now = getattr(config.rollout, name)
            before = settings.get(name, now)
            if now != before and waiting + again:
                raise ValueError(
                    f"rollout.{name}={now:g}: the checkpoint holds responses that were sampled with rollout.{name}={before:g} and are to be learned "
                    f"from, and their log-probs are of that. Set rollout.{name}={before:g}, {_cures(waiting, again)}."
                )


def check_correction(config: Config, algorithm: Algorithm, state: Mapping[str, Any] | None) -> None:
    """ValueError if responses wait in a checkpoint that algorithm.mismatch_correction=auto would weigh now although a part of the
    distribution was sampled from; a warning if it would leave alone now what it weighed before."""
    if config.algorithm.mismatch_correction != "auto" or algorithm.whole_groups:
        return
    for settings, waiting, again in waiting_in(config, state):
        by = [settings.get(name) for name in SAMPLED_BY]
        if None in by or not waiting + again:
            continue
        weighed, a_part = by == [True, False], by[1]
        weighs = correction_of(algorithm) != "none"
        if weighs and a_part:
            raise ValueError(
                "algorithm.mismatch_correction=auto: the checkpoint holds responses that were sampled with top_k, first_token_top_k, top_p or "
                "min_p, and are to be learned from; present settings would weigh them by how much of the distribution these left. Set "
                f"algorithm.mismatch_correction=none until they are learned from, or the settings of that rollout, {_cures(waiting, again)}."
            )
        if weighed and not weighs:
            log.warning(
                "algorithm.mismatch_correction=auto is none with present settings of rollout, and so also for responses that wait in the checkpoint, "
                "of an engine that it corrected before; algorithm.mismatch_correction=truncate goes on correcting them"
            )
            return


def check_sampling_mask(config: Config, state: Mapping[str, Any] | None) -> None:
    """A warning if the sampling mask is kept now, and responses wait in a checkpoint whose mask was not."""
    if not config.rollout.keep_sampling_mask:
        return
    waiting = again = 0
    for settings, waits, replayed in waiting_in(config, state):
        if settings.get(SAMPLED_BY[1]):
            waiting, again = waiting + waits, again + replayed
    if waiting + again:
        log.warning(
            "rollout.keep_sampling_mask=true: %d groups that wait in the checkpoint, and %d that may be learned from again, were sampled with top_k, "
            "first_token_top_k, top_p or min_p while it was false, so nobody knows what their tokens were drawn among: the trainer goes on "
            "taking their log-probs of the whole vocabulary",
            waiting, again,
        )  # fmt: skip


def _cures(waiting: int, again: int) -> str:
    """What else helps where so many groups wait, and so many may be learned from again."""
    new = "or start a new run with model.path set to a model of this one"
    return f"or replay.groups_per_step=0, {new}" if again and not waiting else new
