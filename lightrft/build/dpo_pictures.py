"""From a DPOConfig to what a diffusion pipeline learns of pairs of pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lightrft.algorithms.policy_preference import POLICY_LOSSES
from lightrft.build import offline
from lightrft.build.process import dated
from lightrft.build.reward import bound_loss, prompts_of
from lightrft.config import DPOConfig, SFTConfig
from lightrft.config.checks import refuse_idle
from lightrft.datasets.comparisons import warn_of_leaks
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.picture_pairs import PictureComparisons, PicturesOpener, drawn
from lightrft.models.given_pictures import GivenPictures
from lightrft.models.pictures import blank_step, step_layout
from lightrft.models.pipelines import FlowSource
from lightrft.parallel.world import World
from lightrft.strategy.memory import Resident, Tensors
from lightrft.trainer.offline import HeldOut
from lightrft.trainer.picture_preferences import PicturePreferences
from lightrft.trainer.policy_preferences import OUTPUT, PolicyPreferences
from lightrft.utils.device import pick_device

log = logging.getLogger("lightrft")
WEAK = 10.0
"""A beta below it, times a mean squared error's difference, leaves every pair undecided."""


def of_pictures(config: DPOConfig, run: Path, world: World) -> offline.Setup:
    """What a pipeline learns, and from what. ValueError for settings that it cannot obey, before weights load."""
    loss = bound_objective(config)
    given = GivenPictures.of(config, pick_device(config.strategy.device))
    objective = PicturePreferences(config, loss, given=given)
    processor: Any = given.processor  # has what comparisons ask of one of words
    dated(processor, run, world)
    comparisons = PictureComparisons(
        processor, config, drawn, compares=objective.compares, outputs=[objective.output], unnamed=OUTPUT, speaks=True,
        kind=given.kind,
    )  # fmt: skip
    return offline.Setup(
        processor=processor,
        source=FlowSource(config.model),
        objective=objective,
        prompts_of=partial(prompts_of, config, comparisons),
        check=warn_of_common,
        judgement=objective,
        opener=PicturesOpener(processor, config.tasks, given.state),
        outputs=[objective.output],
        layout=lambda answers, _: step_layout(answers, processor.width),
        blank=partial(blank_step, processor, 0, 2),
        residents=partial(readers, given),
        write=lambda _, weights, folder: given.pipeline.write(weights, folder),
    )


def readers(given: GivenPictures) -> dict[str, Resident]:
    """The VAE, which loads with this call, as a resident of device memory; nothing of a pipeline without one."""
    vae, device = given.vae, given.device
    if vae is None:
        return {}
    return {"vae": Tensors(lambda: list(vae.parameters()), str(device), moves=device.type != "cpu")}


def refuse_words(config: DPOConfig | SFTConfig, path: str, options: Sequence[str]) -> None:
    """ValueError for what is said of words: these options, and those of sections."""
    plain = type(config)()
    for option in options:
        if getattr(config, option) != getattr(plain, option):
            raise ValueError(
                f"{option}={getattr(config, option)}: {path}, and this is of words. Leave it out."
            )
    idle = ["share_prompts", "logits_per_chunk"]
    refuse_idle("update", config.update, idle, because=path, cure="take a language model")
    names = ["fps", "max_frames", "max_seconds"]
    refuse_idle("media", config.media, names, because=path, cure="take a language model")
    if config.tasks.on_long_prompt == "truncate_left":
        raise ValueError(
            f"tasks.on_long_prompt=truncate_left: {path}, whose text encoders read a prompt as it is. Set tasks.on_long_prompt=skip."
        )


def bound_objective(config: DPOConfig) -> partial[Tensor]:
    """The loss with its options. ValueError for options of words, and for a loss that asks for what pictures have not; a warning for a beta that is of
    words."""
    path = f"model.path={config.model.path} is a diffusion pipeline"
    refuse_words(config, path, ("average", "max_tokens", "on_long_response"))
    loss = bound_loss(config, POLICY_LOSSES)
    asks = PolicyPreferences(config, loss)
    if not asks.needs_reference or asks.needs_divergence:
        fits = [
            name
            for name, one in POLICY_LOSSES.items()
            if getattr(one, "needs_reference", True) and not getattr(one, "needs_divergence", False)
        ]
        raise ValueError(
            f"loss={config.loss}: {path}, whose pictures have errors beside those of the model that the run began with, and no "
            f"log-probs of their own. Set loss to one of: {', '.join(fits)}."
        )
    beta = config.options.get("beta", 0.1)
    if config.loss in POLICY_LOSSES and beta < WEAK:
        log.warning(
            "options.beta=%g: %s, and errors of pictures differ by thousandths where log-probs of texts differ by tens. Diffusion-DPO has 2000 to 5000.",
            beta, path,
        )  # fmt: skip
    return loss


def warn_of_common(prompts: PromptLoader, held_out: Sequence[HeldOut]) -> None:
    """Says in the log how many held-out texts are learned from."""
    learned = [prompt for source in prompts.sources for prompt in source]
    for one in held_out:
        warn_of_leaks(learned, one.prompts, one.task)
