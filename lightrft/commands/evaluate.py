"""`lightrft evaluate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lightrft.build.data import build_eval_sets, check_asked, task_rewards
from lightrft.build.judges import add_judging_models, check_judging, named_judge
from lightrft.build.kinds import policy_of
from lightrft.build.memory import build_memory_plan
from lightrft.build.models import check_pages
from lightrft.build.other_models import held_whole
from lightrft.build.process import check_fused, prepare_process
from lightrft.build.reward_models import model_rewards
from lightrft.build.tables import ENGINES
from lightrft.build.tasks import records_of
from lightrft.build.turns import build_turns
from lightrft.config import Config
from lightrft.datasets.prompts import Opener
from lightrft.engines.external import check_kinds
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.runs.folder import evaluated_in
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.media import MediaCopies
from lightrft.tasks.table import NoSplitError, Split, load_task
from lightrft.trainer.evaluate import Evaluator
from lightrft.trainer.sampler import Sampler, Unchanging
from lightrft.utils.device import pick_device
from lightrft.utils.imports import resolve
from lightrft.utils.shown import shown


def evaluate(config: Config) -> dict[str, Any]:
    """Scores a model on tasks.evaluate, prints and saves it; returns the estimates by task."""
    device = pick_device(config.strategy.device)
    with World.joined(device, config.strategy.timeout_seconds) as world, contextlib.ExitStack() as stack:
        with world.independent():
            folder = stack.enter_context(evaluated_in(config)) if world.is_first else None
        folder = world.gather(folder)[0]
        assert folder is not None
        world.redirect_output(RunFolder(folder).log, RunFolder(folder).rank_logs)
        return evaluate_in(config, folder, device, world, stack)


def evaluate_in(
    config: Config, folder: Path, device: torch.device, world: World, stack: contextlib.ExitStack
) -> dict[str, Any]:
    """Scores a model on tasks.evaluate, every rank a part of the prompts; returns the estimates by task."""
    prepare_process(config)
    config = replace(config, evaluate=replace(config.evaluate, before_and_after=True))
    kind = policy_of(config)
    processor = kind.processor
    turns = build_turns(config, processor, stack)
    check_asked(config, kind, training=False)
    eval_sets, judge = build_eval_sets(config, processor)
    check_judging(config, [judge], training=False)
    check_fused(config, {"model.path": config.model} | named_judge(config))
    check_pages(config)
    prompts = (prompt for eval_set in eval_sets for prompt in eval_set.prompts)
    check_kinds(config.rollout.engine, prompts, processor.media, device)
    with judge:
        evaluator = Evaluator(
            eval_sets=eval_sets,
            rewards=judge,
            processor=processor,
            config=config.evaluate,
            max_tokens=config.evaluate.max_tokens,
            stop=tuple(config.rollout.stop),
            seed=config.seed,
            folder=folder,
            world=world,
            turns=turns,
            open=Opener(processor, config.tasks),
            media=MediaCopies(RunFolder(folder).media, config.log.media_mib),
        )
        module = kind.source(learns=False).full(device)
        engine = resolve(ENGINES, config.rollout.engine, "rollout engine")(module, processor, config.rollout)
        judging = add_judging_models(config, [judge], engine, processor, device, kind.makes)
        memory_plan = build_memory_plan(
            {"policy": held_whole(module, config, device)}, engine, judging, device
        )
        memory_plan.begin()
        restarts = config.rollout.max_engine_restarts
        sampler = Sampler(engine, Unchanging(module), memory_plan, world, restarts)
        with sampling_bar(visible=config.log.progress) as bar:
            answers = sampler(partial(evaluator.sample, engine, progress=bar))
        sampler.judged(judge, [t for group in answers for t in group])
        evaluator.report(answers, "responses")
        world.barrier()  # the first rank has written what all read
    estimates: dict[str, Any] = EvaluationFolder(folder).read_report("responses")
    if world.is_first:
        print_estimates(estimates, config.model.path, folder)
    return estimates


def check_task(config: Config, name: str) -> int:
    """Proves that a task's gold answers score full marks, in each split there is; 0 if they do, else 1.

    ValueError for records that cannot be read.
    """
    task = load_task(name)
    rewards = {task.name: task_rewards(config, task)}
    sound = True
    checked: list[Split] = []
    with RewardRunner(rewards, config.rewards, model_rewards(config), config.sandbox) as judge:
        splits: tuple[Split, ...] = ("train", "evaluate")
        for split in splits:
            try:
                records = records_of(config, task, split)
            except NoSplitError as error:
                Console().print(f"{split}: not checked: {error}", soft_wrap=True, markup=False)
                continue
            checked.append(split)
            found = check_gold(task.name, records, task.gold, judge)
            Console().print(f"{split}: {found}", soft_wrap=True, markup=False, highlight=False)
            sound = sound and found.ok
    return 0 if sound and checked else 1


@contextlib.contextmanager
def sampling_bar(*, visible: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for responses; nothing is shown unless it is `visible` (log.progress)."""
    from rich import progress

    done = progress.MofNCompleteColumn()
    bar, left = progress.BarColumn(), progress.TimeRemainingColumn()
    screen = Console(stderr=True)
    with progress.Progress("sampling", bar, done, left, console=screen, disable=not visible) as bars:
        task = bars.add_task("responses", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def print_estimates(estimates: Mapping[str, Any], model: str, folder: Path) -> None:
    """A table of every estimate with its interval."""
    from rich.table import Table
    from rich.text import Text

    table = Table("task", "measure", "estimate", "95 % interval", title=Text(shown(model)))
    for task, report_ in estimates.items():
        for name, value in report_.items():
            if isinstance(value, dict):
                table.add_row(
                    Text(shown(task)),
                    name,
                    f"{value['mean']:.1%}",
                    f"{value['low']:.1%} to {value['high']:.1%}",
                )
        facts = f"{report_['questions']} prompts, {report_['responses']} responses, {report_['mean_length']:.0f} tokens each"
        failed = f", {report_['failed_rewards']} not judged" if report_["failed_rewards"] else ""
        table.add_row("", "", f"{facts}, {report_['truncated_fraction']:.0%} truncated{failed}")
        table.add_section()
    console = Console()
    console.print(table)
    console.print(
        f"every response: {EvaluationFolder(folder).responses('responses')}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
