"""From settings to data: tasks, their prompts and rewards, held-out prompts."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightrft.build.judges import check_judging, check_targets
from lightrft.build.reward_models import check_rated, model_rewards
from lightrft.build.tasks import evaluated_tasks, records_of, training_tasks
from lightrft.config import Config, ModelConfig
from lightrft.config.remote import named_there
from lightrft.config.rewards import rewards_of
from lightrft.datasets.deferred import AT_ONCE, deferred, prepared
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Asked, Opener, tell_skipped, tokenised
from lightrft.datasets.sources import Located
from lightrft.datasets.stream import StreamLoader
from lightrft.datasets.text_records import alike
from lightrft.models.describe import context
from lightrft.models.kinds import PolicyKind
from lightrft.models.processor import Processor
from lightrft.parallel.world import World
from lightrft.rewards.asked import asked, check_views, named_fields, wanted_fields
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.table import JUDGE
from lightrft.rewards.vote import VOTES
from lightrft.runs.layout import RunFolder
from lightrft.runs.media import MediaCopies
from lightrft.tasks.stream import NAME, FileStream, text_records
from lightrft.tasks.table import Task, load_task, load_tasks
from lightrft.trainer.evaluate import EvalSet, Evaluator
from lightrft.trainer.scaler import RewardScaler
from lightrft.trainer.turns import Turns
from lightrft.utils.garbage import uncollected

log = logging.getLogger("lightrft")


@dataclass(frozen=True)
class TaskData:
    """What is asked and how it is judged: tasks, their prompts, the rewards."""

    prompts: PromptLoader
    judge: RewardRunner
    eval_sets: list[EvalSet]
    eval_judge: RewardRunner

    @property
    def judges(self) -> list[RewardRunner]:
        """Runners of the rewards of training and of evaluations."""
        return [self.judge, self.eval_judge]

    @property
    def asked(self) -> Iterator[Asked]:
        """The prompts, those that are not tokenised yet as records; of many that are alike in all but their texts one."""
        for prompts in (*self.prompts.sources, *(eval_set.prompts for eval_set in self.eval_sets)):
            yield from alike(prompts)


def build_task_data(config: Config, processor: Processor, world: World) -> TaskData:
    """Loads the tasks' data, both splits, and the rewards."""
    tasks = training_tasks(config)
    models = model_rewards(config)
    rewards = training_rewards(config, tasks.values())
    judge = RewardRunner(rewards, config.rewards, models, config.sandbox)
    if config.tasks.stream_block:
        loader: PromptLoader = streamed_prompts(config, processor, rewards[NAME], world)
    else:
        sources = [
            (prompts_of(config, task, "train", processor, rewards[task.name]), config.tasks.train[name])
            for name, task in tasks.items()
        ]
        opener = Opener(processor, config.tasks)
        loader = PromptLoader(
            sources, config.seed, world.rank, world.size,
            open=opener, tokens=opener.tokens, priority_floor=config.rollout.priority_floor,
        )  # fmt: skip
    eval_sets, eval_judge = build_eval_sets(config, processor)
    check_judging(config, [judge, eval_judge])
    data = TaskData(loader, judge, eval_sets, eval_judge)
    for one, judged in ((judge, loader.sources), (eval_judge, [e.prompts for e in eval_sets])):
        check_targets(config, one, (prompt for prompts in judged for prompt in alike(prompts)))
    return data


def streamed_prompts(
    config: Config, processor: Processor, rewards: Iterable[str], world: World
) -> StreamLoader:
    """The prompts of task `file`, whose rows are read block by block (tasks.stream_block). ValueError as in `prompts_of`, for the first
    block at once and for each later one when it is read."""
    source, names = FileStream(config.tasks, config.data), list(rewards)
    opener = Opener(processor, config.tasks)

    def made(rows: list[Located]) -> Sequence[Asked]:
        found = source.records(rows)
        form = deferred if processor.can_defer else tokenised
        prompts, counts = form(found, processor, config.tasks, wanted_fields(found, names))
        tell_skipped(counts, config.tasks)
        if told := beyond_context_of_rollout(config, counts.longest):
            log.warning("%s: %s", NAME, told)
        return prompts

    loader = StreamLoader(
        NAME, source.rows, made, config.tasks.stream_block, config.seed, world.rank, world.size,
        open=opener, tokens=opener.tokens,
    )  # fmt: skip
    log.info("%s, train: streamed, %d rows at a time", NAME, config.tasks.stream_block)
    return loader


def check_asked(config: Config, kind: PolicyKind, *, training: bool = True) -> None:
    """ValueError for a reward of training or evaluation that asks for what the policy's responses do not hold. Loads none of them."""
    held_out = load_tasks(evaluated_tasks(config)).values()
    rewards = [eval_rewards(config, task) for task in held_out]
    if training:
        rewards += training_rewards(config, training_tasks(config).values()).values()
    names = sorted({name for weights in rewards for name in weights})
    for name in names:
        asked(name)
    check_views(names, kind.makes, config.model.path, config.remote.urls)
    check_rated(config, names, kind.makes)


def build_eval_sets(config: Config, processor: Processor) -> tuple[list[EvalSet], RewardRunner]:
    """The held-out prompts, the same whatever the training settings, and their judge."""
    eval_sets, weights, opener = [], evaluated_tasks(config), Opener(processor, config.tasks)
    for name, task in load_tasks(weights).items():
        if not task.max_tokens:  # rows of a user's own
            task = replace(task, max_tokens=config.rollout.max_tokens)
        prompts = prompts_of(config, task, "evaluate", processor, eval_rewards(config, task))
        some = map(opener.written, prompts[: config.evaluate.limit or None])
        eval_sets.append(EvalSet(task, [prompt for prompt in some if prompt is not None], weights[name]))
    rewards = {eval_set.task.name: eval_rewards(config, eval_set.task) for eval_set in eval_sets}
    # Evaluation goes on when one response cannot be judged: such responses are counted in the report, never scored.
    return eval_sets, RewardRunner(
        rewards, replace(config.rewards, on_failure="drop"), model_rewards(config), config.sandbox
    )


def training_rewards(config: Config, tasks: Iterable[Task]) -> dict[str, dict[str, float]]:
    """Task -> its rewards in training, with the cost of a constraint among them, which adds nothing to the reward."""
    cost = {config.constraint.cost: 0.0} if config.constraint.cost else {}
    return {task.name: cost | task_rewards(config, task) for task in tasks}


def eval_rewards(config: Config, task: Task) -> dict[str, float]:
    """What a task's held-out responses are scored by: its own rewards, or those of training if it has none."""
    found = own_rewards(config, task) or task_rewards(config, task)
    compares = [*VOTES, *([JUDGE] if config.judge.against == "siblings" else [])]
    votes = [name for name in found if name in compares]
    if votes:
        own = (
            "Set its own reward, e.g. --tasks.rewards math 1"
            if task.name == "file"
            else "Give the task rewards"
        )
        raise ValueError(
            f"task '{task.name}' would be evaluated by '{votes[0]}' of rewards.functions, which compares responses with each other and "
            f"not with what is right. {own}, or switch evaluation off with evaluate.before_and_after=false and "
            "evaluate.every_steps=0."
        )
    return found


def own_rewards(config: Config, task: Task) -> dict[str, float]:
    """The rewards that a task brings: for one's own rows those of tasks.rewards."""
    return dict(config.tasks.rewards if task.name == "file" else task.rewards)


def task_rewards(config: Config, task: Task) -> dict[str, float]:
    """The rewards of a task in training: those of rewards.functions that are meant for it, else its own."""
    names = [name for name in config.tasks.train if load_task(name).name == task.name]
    functions = config.rewards.functions
    chosen = rewards_of(functions, (names or [task.name])[0], config.tasks.train) or own_rewards(config, task)
    if not chosen:
        raise ValueError(
            f"task '{task.name}' has no reward of its own. Set rewards.functions, e.g. --rewards.functions rewards.py:mine 1"
        )
    return chosen


def prompts_of(
    config: Config, task: Task, split: Any, processor: Processor, rewards: Collection[str]
) -> Sequence[Asked]:
    """The prompts of one split of a task, with the fields of their rows that these rewards ask for; of many those that are not
    tokenised yet as records. ValueError where a row lacks a field."""
    with uncollected():
        fields, own = named_fields(rewards), None
        if task == load_task("file"):
            own = text_records(split, config.tasks, config.data, AT_ONCE + 1, fields)
        found = own if own is not None else records_of(config, task, split)
        prompts, counts = prepared(found, processor, config.tasks, wanted_fields(alike(found), rewards))
    log.info("%s, %s: %d prompts, longest %d tokens", task.name, split, counts.kept, counts.longest)
    if counts.deferred:
        log.info("%s, %s: %d of them are tokenised when they are drawn", task.name, split, counts.deferred)
    if split == "train" and (told := beyond_context_of_rollout(config, counts.longest)):
        log.warning("%s: %s", task.name, told)
    return prompts


def beyond_context_of_rollout(config: Config, longest: int) -> str:
    """`beyond_context` of the responses that are learned from."""
    return beyond_context(config.model, longest, config.rollout.max_tokens, "rollout.max_tokens")


def beyond_context(model: ModelConfig, longest: int, response: int, option: str) -> str:
    """A sentence if the longest prompt and a full response, of so many tokens, are more than the model was made for; else empty. `option`:
    what bounds the response."""
    room, needed = context(model), longest + response
    if room is None or needed <= room:
        return ""
    return (
        f"the longest prompt and a full response are {needed} tokens; the model was made for {room}. Lower tasks.max_prompt_tokens or "
        f"{option}."
    )


def build_scaler(config: Config, judge: RewardRunner, world: World) -> RewardScaler:
    """What becomes of rewards before they are learned from."""
    cost = judge.labels[config.constraint.cost] if config.constraint.cost else ""
    scale = {load_task(name).name: factor for name, factor in config.rewards.scale.items()}
    weights = {
        task: {judge.labels[name]: weight for name, weight in rewards.items()}
        for task, rewards in judge.weights.items()
    }
    options = replace(config.rewards, scale=scale)
    far = {name: f"the remote reward {named_there(name, urls)}" for name, urls in config.remote.urls.items()}
    by = {JUDGE: config.judge.path, **config.reward_model.paths, **far}
    places = {judge.labels[name]: place for name, place in by.items() if name in judge.models}
    return RewardScaler(list(judge.weights), options, config.constraint, cost, world, weights, places)


def build_evaluator(
    config: Config,
    task_data: TaskData,
    processor: Processor,
    turns: Turns | None,
    run: Path,
    world: World,
) -> Evaluator:
    """Evaluates on the curriculum's held-out prompts."""
    return Evaluator(
        eval_sets=task_data.eval_sets,
        rewards=task_data.eval_judge,
        processor=processor,
        config=config.evaluate,
        max_tokens=config.evaluate.max_tokens or config.rollout.max_tokens,
        stop=tuple(config.rollout.stop),
        seed=0,
        folder=RunFolder(run).evaluation,
        world=world,
        turns=turns,
        open=Opener(processor, config.tasks),
        media=MediaCopies(RunFolder(run).media, config.log.media_mib),
    )
