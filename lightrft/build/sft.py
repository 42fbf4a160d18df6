"""From an SFTConfig to a run of supervised fine-tuning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lightrft.build import offline
from lightrft.build.data import beyond_context
from lightrft.build.own_responses import build_engine
from lightrft.build.process import dated
from lightrft.build.sft_pictures import of_pictures
from lightrft.build.tasks import records_of
from lightrft.config import ModelConfig, RolloutConfig, SFTConfig, UnmaskConfig
from lightrft.config.checks import refuse_idle
from lightrft.datasets.conversations import Conversations
from lightrft.models.describe import is_masked, is_pipeline
from lightrft.models.load import load_processor
from lightrft.models.masked import MaskedProcessor, reading_of
from lightrft.models.masked_demands import ENGINE as REVEALS
from lightrft.models.masked_demands import check_parts
from lightrft.models.masking import Masking
from lightrft.models.reward_source import writing_processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.tasks.table import Split, Task
from lightrft.trainer.masked_sft import MaskedImitation
from lightrft.trainer.run import Run
from lightrft.trainer.sft import Imitation
from lightrft.types import Prompt

log = logging.getLogger("lightrft")


def build_run(
    config: SFTConfig, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> Run:
    """All parts of a run of supervised fine-tuning."""

    make = next(make for holds, make in KINDS if holds(config.model))
    return offline.build_run(config, run, stack, partial(make, config, run), started=started, resume=resume)


def of_words(config: SFTConfig, run: Path, world: World) -> offline.Setup:
    """What a language model learns, and from what. ValueError for settings that it cannot obey."""
    because = f"model.path={config.model.path}, which writes from left to right"
    refuse_idle("masked", config.masked, because=because, cure="take a masked diffusion language model")
    refuse_pictures(config)
    processor = dated(writing_processor(config.model, config.media), run, world)
    frozen = Source(config.model, learns=False)
    return offline.Setup(
        processor,
        Source(config.model),
        Imitation(config),
        partial(prompts_of, config, Conversations.of(processor, config)),
        engine=partial(build_engine, config, processor, sampled_as(config, RolloutConfig()), frozen),
        sampled_tokens=config.log.sampled_tokens,
    )


def of_masked(config: SFTConfig, run: Path, world: World) -> offline.Setup:
    """What a masked diffusion language model learns, and from what. ValueError for settings that it cannot obey."""
    check_masked(config)
    refuse_pictures(config)
    sampled = RolloutConfig(engine=REVEALS, unmask=UnmaskConfig(predicts=config.masked.predicts))
    plain = reading_of(config.model, sampled.unmask)
    reading = Masking(plain.options, plain.mask, config.masked.draws)
    processor = MaskedProcessor.of(
        load_processor(config.model, config.media), plain, config.log.sampled_tokens or 1
    )
    dated(processor, run, world)
    frozen = Source(config.model, learns=False)
    return offline.Setup(
        processor,
        Source(config.model),
        MaskedImitation(config, reading=reading),
        partial(masked_prompts_of, config, Conversations.of(processor, config)),
        engine=partial(build_engine, config, processor, sampled_as(config, sampled), frozen),
        sampled_tokens=config.log.sampled_tokens,
        layout=lambda answers, _: reading.layout(answers),
    )


def refuse_pictures(config: SFTConfig) -> None:
    """ValueError for settings of pictures, which a language model does not learn from."""
    because = f"model.path={config.model.path}, a language model"
    refuse_idle("pictures", config.pictures, because=because, cure="take a diffusion pipeline")


def check_masked(config: SFTConfig) -> None:
    """ValueError, naming setting, value and cure, for what a masked diffusion language model cannot obey; nothing of others."""
    if not is_masked(config.model):
        return
    path = f"model.path={config.model.path} is a masked diffusion language model"
    check_parts(config, path)
    cure = "take a model that writes from left to right"
    refuse_idle("update", config.update, ["share_prompts"], because=path, cure=cure)


KINDS: tuple[tuple[Callable[[ModelConfig], bool], Callable[[SFTConfig, Path, World], offline.Setup]], ...] = (
    (is_pipeline, of_pictures),
    (is_masked, of_masked),
    (lambda _: True, of_words),
)
"""How a kind of model is known, and what makes its run; the first row that holds a model is its kind."""


def sampled_as(config: SFTConfig, rollout: RolloutConfig) -> RolloutConfig | None:
    """How the model's own responses are sampled for people; None where none are."""
    return rollout if config.log.samples else None


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


def masked_prompts_of(
    config: SFTConfig, conversations: Conversations, task: Task, split: Split
) -> list[Prompt]:
    """`prompts_of` a model that reads both ways. ValueError where something follows a turn that is learned."""
    prompts, canvas = prompts_of(config, conversations, task, split), config.masked.canvas
    several = sum(not all(prompt.target.mask) for prompt in prompts)
    if several:
        raise ValueError(
            f"train_on={config.train_on}: {several} of {len(prompts)} conversations of task '{task.name}', {split}, go on after a turn that is learned, and "
            f"model.path={config.model.path} reads both ways: it would learn that turn with the answers to it in sight, which are not there when it is "
            "sampled. Set train_on=last_turn."
        )
    longer = sum(len(prompt.target.token_ids) > canvas for prompt in prompts)
    if canvas and longer:
        log.warning(
            "%s, %s: %d of %d responses are longer than masked.canvas=%d and are learned as they are, though a model that is sampled with "
            "rollout.max_tokens=%d cannot write them. Raise both, or lower max_tokens.",
            task.name, split, longer, len(prompts), canvas, canvas,
        )  # fmt: skip
    longest = max(len(prompt.token_ids) for prompt in prompts)
    if canvas and (told := beyond_context(config.model, longest, canvas, "masked.canvas")):
        log.warning("%s, %s: %s", task.name, split, told)
    return prompts
