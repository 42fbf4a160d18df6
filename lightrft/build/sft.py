"""From an SFTConfig to a run of supervised fine-tuning."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from pathlib import Path

from lightrft.build import offline
from lightrft.build.data import beyond_context
from lightrft.build.process import dated
from lightrft.build.tables import ENGINES
from lightrft.build.tasks import records_of
from lightrft.config import RolloutConfig, SFTConfig
from lightrft.datasets.conversations import Conversations
from lightrft.engines.base import Engine, MakeEngine
from lightrft.models.load import load_processor
from lightrft.models.processor import Processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.strategy.base import Strategy, Trainable
from lightrft.tasks.table import Split, Task
from lightrft.trainer.run import Run
from lightrft.trainer.sft import Imitation
from lightrft.types import Prompt
from lightrft.utils.imports import resolve

log = logging.getLogger("lightrft")


def build_run(
    config: SFTConfig, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> Run:
    """All parts of a run of supervised fine-tuning."""

    def made_of(world: World) -> offline.Setup:
        processor = dated(load_processor(config.model, config.media), run, world)
        conversations = Conversations.of(processor, config)
        return offline.Setup(
            processor,
            Source(config.model),
            Imitation(config),
            partial(prompts_of, config, conversations),
            engine=partial(build_engine, config, processor),
            sampled_tokens=config.log.sampled_tokens,
        )

    return offline.build_run(config, run, stack, made_of, started=started, resume=resume)


def build_engine(
    config: SFTConfig, processor: Processor, strategy: Strategy, model: Trainable
) -> Engine | None:
    """What samples the model's own responses for people; None, with a line in the log, where nothing can or should."""
    if not config.log.samples:
        return None
    if strategy.shards and not config.log.sample_sharded:
        log.info(
            "the model's own responses to held-out prompts are not saved: its weights are in pieces, and a process would hold all of "
            "them meanwhile. Set log.sample_sharded=true if they fit."
        )
        return None
    module = Source(config.model, learns=False).empty(strategy.device) if strategy.shards else model.module
    try:
        make_engine: MakeEngine = resolve(ENGINES, RolloutConfig().engine, "rollout engine")
        return make_engine(module, processor, RolloutConfig())
    except ValueError as error:
        log.info("the model's own responses to held-out prompts are not saved: %s", error)
        return None


def prompts_of(config: SFTConfig, conversations: Conversations, task: Task, split: Split) -> list[Prompt]:
    """The conversations of one split of a task."""
    prompts, kept = conversations.prompts(records_of(config, task, split), task.gold)
    longest = max(len(p.target.token_ids) for p in prompts)
    log.info(
        "%s, %s: %d conversations, longest response %d tokens; skipped %d long and %d broken ones, truncated %d",
        task.name, split, len(prompts), longest, kept.too_long, kept.broken, kept.truncated,
    )  # fmt: skip
    if split == "evaluate" and config.log.samples:
        longest = max(len(p.token_ids) for p in prompts[: config.log.held_out_prompts])
        if told := beyond_context(config.model, longest, config.log.sampled_tokens, "log.sampled_tokens"):
            log.warning("%s, held out: %s", task.name, told)
    return prompts
