"""What samples a model's own responses to held-out prompts, for people, while it learns from given ones."""

from __future__ import annotations

import logging

from lightrft.build.tables import ENGINES
from lightrft.config import RolloutConfig, SFTConfig
from lightrft.engines.base import Engine, MakeEngine
from lightrft.models.processor import Processor
from lightrft.models.source import Source
from lightrft.strategy.base import Strategy, Trainable
from lightrft.utils.imports import resolve

log = logging.getLogger("lightrft")


def build_engine(
    config: SFTConfig,
    processor: Processor,
    sampled: RolloutConfig | None,
    frozen: Source,
    strategy: Strategy,
    model: Trainable,
) -> Engine | None:
    """An engine as `sampled` says; None, with a line in the log, where nothing can or should sample. `frozen`: the model, not to be learned, from
    which a module is made where the learned weights are in pieces."""
    if sampled is None:
        return None
    if strategy.shards and not config.log.sample_sharded:
        log.info(
            "the model's own responses to held-out prompts are not saved: its weights are in pieces, and a process would hold all of "
            "them meanwhile. Set log.sample_sharded=true if they fit."
        )
        return None
    module = frozen.empty(strategy.device) if strategy.shards else model.module
    try:
        make_engine: MakeEngine = resolve(ENGINES, sampled.engine, "rollout engine")
        return make_engine(module, processor, sampled)
    except ValueError as error:
        log.info("the model's own responses to held-out prompts are not saved: %s", error)
        return None
