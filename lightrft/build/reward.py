"""From a RewardTrainingConfig to a run that trains a reward model."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lightrft.algorithms.preference import PREFERENCE_LOSSES, PreferenceLoss
from lightrft.build import offline
from lightrft.build.process import dated
from lightrft.build.tasks import records_of
from lightrft.config import DPOConfig, RewardTrainingConfig
from lightrft.datasets.comparisons import Comparisons, scored, warn_of_leaks, warn_of_shortcuts
from lightrft.datasets.conversations import end_of_answer
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.sides import SidesOpener
from lightrft.models.describe import is_tiny, stored_shape
from lightrft.models.load import load_processor
from lightrft.models.processor import Processor
from lightrft.models.reward import up_to_score
from lightrft.models.reward_source import RewardSource, check_reward_source, has_head, padding_token
from lightrft.parallel.world import World
from lightrft.tasks.table import Split, Task
from lightrft.trainer.offline import HeldOut
from lightrft.trainer.preferences import Preferences
from lightrft.trainer.run import Run
from lightrft.types import Prompt
from lightrft.utils.imports import import_all, resolve

log = logging.getLogger("lightrft")


def build_run(
    config: RewardTrainingConfig,
    run: Path,
    stack: contextlib.ExitStack,
    *,
    started: float,
    resume: bool = False,
) -> Run:
    """All parts of a run that trains a reward model."""

    def made_of(world: World) -> offline.Setup:
        loss = bound_loss(config)
        processor, source = build_model(config)
        processor = dated(processor, run, world)
        until = partial(up_to_score, padding=source.padding)
        comparisons = Comparisons(
            processor,
            config,
            scored(processor, until),
            compares=bool(getattr(loss.func, "compares_responses", False)),
            outputs=config.outputs,
            signed=config.signed,
        )
        return offline.Setup(
            processor=processor,
            source=source,
            objective=Preferences(config, loss),
            prompts_of=partial(prompts_of, config, comparisons),
            check=partial(check_data, config, comparisons),
            opener=SidesOpener(processor, config.tasks, until),
            outputs=config.outputs,
        )

    return offline.build_run(config, run, stack, made_of, started=started, resume=resume)


def build_model(config: RewardTrainingConfig) -> tuple[Processor, RewardSource]:
    """What turns texts into tokens, padding as the finished model will, and the model as it is to be loaded."""
    import_all(config.model.imports)
    check_reward_source(config.model, config.outputs)
    processor = load_processor(config.model, config.media)
    padding = None
    if not is_tiny(config.model.path) and has_head(config.model):
        padding = stored_shape(config.model).get_text_config().pad_token_id
    if padding is None:
        padding = padding_token(processor, end_of_answer(processor))
    processor.tokenizer.pad_token = processor.tokenizer.convert_ids_to_tokens(padding)
    source = RewardSource(config.model, outputs=tuple(config.outputs), padding=padding, seed=config.seed)
    return processor, source


def bound_loss(
    config: RewardTrainingConfig | DPOConfig, table: Mapping[str, PreferenceLoss] = PREFERENCE_LOSSES
) -> partial[Tensor]:
    """The loss with its options. ValueError for an option that it does not take, or lacks, or a number that it may not be."""
    function: Any = resolve(table, config.loss, "loss")
    if not callable(function):
        raise ValueError(f"loss={config.loss} is a {type(function).__name__}, not a function.")
    own = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = {p.name for p in own}
    for name in config.options:
        if name not in known:
            raise ValueError(
                f"options.{name}: loss={config.loss} does not take it. It takes: {', '.join(sorted(known)) or 'no options'}."
            )
    ranges = getattr(function, "ranges", {})
    for name, value in config.options.items():
        if name in ranges and value not in ranges[name]:
            raise ValueError(f"options.{name}={value:g}: must be {ranges[name]} with loss={config.loss}.")
    lacking = [p.name for p in own if p.default is p.empty and p.name not in config.options]
    if lacking:
        raise ValueError(
            f"loss={config.loss} needs the option '{lacking[0]}'. Set options={{{lacking[0]}: ...}}."
        )
    return partial(function, **config.options)


def prompts_of(
    config: RewardTrainingConfig | DPOConfig, comparisons: Comparisons, task: Task, split: Split
) -> list[Prompt]:
    """The comparisons of one split of a task."""
    prompts, kept = comparisons.prompts(records_of(config, task, split))
    sides = [len(side.token_ids) for p in prompts for side in p.target]
    log.info(
        "%s, %s: %d prompts with %d responses, the longest of %d tokens; skipped %d long and %d broken ones",
        task.name, split, len(prompts), len(sides), max(sides), kept.too_long, kept.broken,
    )  # fmt: skip
    if kept.parted_early:
        log.info(
            "%s, %s: the responses to %d of these prompts part before the last question, and go on with turns of their own",
            task.name, split, kept.parted_early,
        )  # fmt: skip
    if split == "train":
        warn_of_shortcuts(prompts, comparisons.outputs, comparisons.signed, task.name)
    return prompts


def check_data(
    config: RewardTrainingConfig, comparisons: Comparisons, prompts: PromptLoader, held_out: Sequence[HeldOut]
) -> None:
    """ValueError for an output that nothing teaches; a warning for held-out prompts that are learned from, too."""
    learned = [prompt for source in prompts.sources for prompt in source]
    for name in config.outputs:
        if not any(comparisons.teaches(prompt.target, name) for prompt in learned):
            raise ValueError(
                f"outputs={config.outputs}: '{name}' has no grades that loss={config.loss} learns from, so it would stay random. Leave it "
                "out, or take a tasks.format that gives it grades."
            )
    for one in held_out:
        warn_of_leaks(learned, one.prompts, one.task)
