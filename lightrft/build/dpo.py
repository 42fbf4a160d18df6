"""From a DPOConfig to a run that learns preferences without reinforcement learning."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lightrft.algorithms.policy_preference import POLICY_LOSSES, inverse_counts
from lightrft.build import offline
from lightrft.build.dpo_pictures import of_pictures
from lightrft.build.process import dated
from lightrft.build.reward import bound_loss, prompts_of
from lightrft.config import DPOConfig, ModelConfig
from lightrft.config.checks import refuse_idle
from lightrft.datasets.comparisons import Comparisons, spoken, warn_of_leaks
from lightrft.datasets.conversations import checked_ending
from lightrft.datasets.loader import PromptLoader
from lightrft.models.describe import is_pipeline
from lightrft.models.reward_source import writing_processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.trainer.offline import HeldOut
from lightrft.trainer.policy_preferences import OUTPUT, PolicyPreferences
from lightrft.trainer.run import Run

log = logging.getLogger("lightrft")


def build_run(
    config: DPOConfig, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> Run:
    """All parts of a run that learns preferences."""

    make = next(make for holds, make in KINDS if holds(config.model))
    made_of = partial(make, config, run)
    return offline.build_run(config, run, stack, made_of, started=started, resume=resume)


def of_words(config: DPOConfig, run: Path, world: World) -> offline.Setup:
    """What a language model learns, and from what. ValueError for settings that it cannot obey."""
    refuse_idle(
        "pictures",
        config.pictures,
        because=f"model.path={config.model.path}, a language model",
        cure="take a diffusion pipeline",
    )
    objective = PolicyPreferences(config, bound_loss(config, POLICY_LOSSES))
    if objective.needs_divergence and config.batch_size < 2:
        raise ValueError(
            f"batch_size={config.batch_size}: loss={config.loss} measures the divergence from the reference on a step's prompts with "
            "each other's responses. Set batch_size to 2 or more."
        )
    processor = dated(writing_processor(config.model, config.media), run, world)
    comparisons = Comparisons(
        processor,
        config,
        spoken(processor, checked_ending(processor)),
        compares=objective.compares,
        outputs=[objective.output],
        unnamed=OUTPUT,
        speaks=True,
    )
    return offline.Setup(
        processor=processor,
        source=Source(config.model),
        objective=objective,
        prompts_of=partial(prompts_of, config, comparisons),
        check=partial(check_data, objective),
        judgement=objective if objective.needs_reference else None,
        outputs=[objective.output],
    )


KINDS: tuple[tuple[Callable[[ModelConfig], bool], Callable[[DPOConfig, Path, World], offline.Setup]], ...] = (
    (is_pipeline, of_pictures),
    (lambda _: True, of_words),
)
"""How a kind of model is known, and what makes its run; the first row that holds a model is its kind."""


def check_data(objective: PolicyPreferences, prompts: PromptLoader, held_out: Sequence[HeldOut]) -> None:
    """Warns of held-out prompts that are learned from, and weighs the two kinds of responses of kto where the settings do not."""
    learned = [prompt for source in prompts.sources for prompt in source]
    for one in held_out:
        warn_of_leaks(learned, one.prompts, one.task)
    if objective.weighs_kinds:
        sides = [side for prompt in learned for side in prompt.target]
        weigh_kinds(
            objective, [side.grades[objective.output] for side in sides if objective.output in side.grades]
        )


def weigh_kinds(objective: PolicyPreferences, grades: Sequence[float]) -> None:
    """Gives each kind the weight that the settings name, else the inverse of its count, and says so in the log."""
    good = sum(grade > 0 for grade in grades)
    bad = sum(grade <= 0 for grade in grades)
    names = ("desirable_weight", "undesirable_weight")
    given = objective.config.options
    weights = {
        name: given.get(name, weight) for name, weight in zip(names, inverse_counts(good, bad), strict=True)
    }
    known = objective.function
    objective.function = partial(known.func, **{**known.keywords, **weights})
    log.info(
        "%d desirable and %d undesirable responses: they weigh %.4g and %.4g each (options.desirable_weight, options.undesirable_weight)",
        good, bad, *weights.values(),
    )  # fmt: skip
    if not good or not bad:
        log.warning(
            "all %d responses are %s: nothing says what the others should be like",
            good + bad, "desirable" if good else "undesirable",
        )  # fmt: skip
