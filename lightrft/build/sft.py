"""From an SFTConfig to a run of supervised fine-tuning."""

from __future__ import annotations

import contextlib
import logging
from functools import partial
from pathlib import Path

from lightrft.build import offline
from lightrft.build.process import dated
from lightrft.build.tasks import records_of
from lightrft.config import SFTConfig
from lightrft.datasets.conversations import Conversations
from lightrft.models.load import load_processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.tasks.table import Split, Task
from lightrft.trainer.run import Run
from lightrft.trainer.sft import Imitation
from lightrft.types import Prompt

log = logging.getLogger("lightrft")


def build_run(
    config: SFTConfig, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> Run:
    """All parts of a run of supervised fine-tuning."""

    def made_of(world: World) -> offline.Setup:
        processor = dated(load_processor(config.model, config.media), run, world)
        conversations = Conversations.of(processor, config)
        read = partial(prompts_of, config, conversations)
        return offline.Setup(processor, Source(config.model), Imitation(config), read)

    return offline.build_run(config, run, stack, made_of, started=started, resume=resume)


def prompts_of(config: SFTConfig, conversations: Conversations, task: Task, split: Split) -> list[Prompt]:
    """The conversations of one split of a task."""
    prompts, kept = conversations.prompts(records_of(config, task, split), task.gold)
    longest = max(len(p.target.token_ids) for p in prompts)
    log.info(
        "%s, %s: %d conversations, longest response %d tokens; skipped %d long and %d broken ones, truncated %d",
        task.name, split, len(prompts), longest, kept.too_long, kept.broken, kept.truncated,
    )  # fmt: skip
    return prompts
