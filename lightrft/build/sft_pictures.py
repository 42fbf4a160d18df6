"""From an SFTConfig to what a diffusion pipeline learns of given pictures."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightrft.build import offline
from lightrft.build.dpo_pictures import readers, refuse_words
from lightrft.build.own_responses import build_engine
from lightrft.build.process import dated
from lightrft.build.tasks import records_of
from lightrft.config import RolloutConfig, SFTConfig
from lightrft.config.checks import refuse_idle
from lightrft.datasets.picture_demonstrations import PictureDemonstrations
from lightrft.datasets.picture_pairs import PicturesOpener
from lightrft.models.demands import ENGINE
from lightrft.models.given_pictures import GivenPictures
from lightrft.models.pictures import blank_step, check_number, step_layout
from lightrft.models.pipelines import FlowSource
from lightrft.parallel.world import World
from lightrft.tasks.table import Split, Task
from lightrft.trainer.picture_imitation import PictureImitation
from lightrft.types import Prompt
from lightrft.utils.device import pick_device

log = logging.getLogger("lightrft")
WORDS = ("train_on", "average", "max_tokens", "on_long_response")
"""Options of words alone."""
LEAST = 2
"""Steps that a picture needs."""


def of_pictures(config: SFTConfig, run: Path, world: World) -> offline.Setup:
    """What a pipeline learns, and from what. ValueError for settings that it cannot obey, before weights load."""
    check_options(config)
    given = GivenPictures.of(config, pick_device(config.strategy.device))
    processor: Any = given.processor  # has what conversations ask of one of words
    sampled = sampled_by(config, given)
    dated(processor, run, world)
    return offline.Setup(
        processor=processor,
        source=FlowSource(config.model),
        objective=PictureImitation(config, given=given),
        prompts_of=partial(prompts_of, config, PictureDemonstrations(processor, config, given.kind)),
        opener=PicturesOpener(processor, config.tasks, given.state),
        engine=partial(build_engine, config, processor, sampled, FlowSource(config.model, learns=False)),
        sampled_tokens=1,
        layout=lambda answers, _: step_layout(answers, processor.width),
        blank=partial(blank_step, processor, 0, 2),
        residents=partial(readers, given),
        write=lambda _, weights, folder: given.pipeline.write(weights, folder),
    )


def check_options(config: SFTConfig) -> None:
    """ValueError for options of words."""
    path = f"model.path={config.model.path} is a diffusion pipeline"
    refuse_words(config, path, WORDS)
    cure = "take a masked diffusion language model"
    refuse_idle("masked", config.masked, because=path, cure=cure)
    refuse_idle("log", config.log, ["sampled_tokens"], because=path, cure="set pictures.sampled_steps")
    if not config.log.held_out_prompts:
        because, cure = "log.held_out_prompts=0", "set log.held_out_prompts above 0"
        refuse_idle("pictures", config.pictures, ["sampled_steps"], because=because, cure=cure)
    if not config.pictures.sampled_steps:
        because, cure = "pictures.sampled_steps=0", "set pictures.sampled_steps above 0"
        refuse_idle("log", config.log, ["sample_sharded"], because=because, cure=cure)


def sampled_by(config: SFTConfig, given: GivenPictures) -> RolloutConfig | None:
    """How the model's own pictures are drawn for people; None where none are. ValueError for steps that the scheduler has not, and for guidance of
    nothing."""
    steps = config.pictures.sampled_steps
    if not (config.log.held_out_prompts and steps):
        if not given.pipeline.embeds_guidance:
            because = "pictures.sampled_steps=0" if not steps else "log.held_out_prompts=0"
            refuse_idle(
                "pictures", config.pictures, ["guidance"], because=because, cure="let pictures be drawn"
            )
        return None
    if steps < LEAST:
        raise ValueError(f"pictures.sampled_steps={steps}: must be 0 or at least {LEAST}.")
    check_number(given.processor, "pictures.sampled_steps", steps)
    return RolloutConfig(engine=ENGINE, denoise=replace(given.processor.config, steps=steps))


def prompts_of(
    config: SFTConfig, demonstrations: PictureDemonstrations, task: Task, split: Split
) -> list[Prompt]:
    """The texts of one split of a task, with their pictures."""
    held_out = split == "evaluate"
    prompts, broken = demonstrations.prompts(records_of(config, task, split), task.gold, held_out=held_out)
    log.info("%s, %s: %d pictures; skipped %d broken rows", task.name, split, len(prompts), broken)
    return prompts
