"""What the settings name, found and built without weights, and what one step of the run is made of."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.requirements import build_for, correction_of
from lightrft.build.data import eval_rewards, training_rewards
from lightrft.build.judges import check_judging
from lightrft.build.models import actor_updates
from lightrft.build.reward_models import model_rewards
from lightrft.build.rl import engine_maker
from lightrft.build.tables import ALONE, STRATEGIES, TRAINERS
from lightrft.build.tasks import evaluated_tasks, training_tasks
from lightrft.commands.check.report import Section
from lightrft.config import AlgorithmConfig, Config
from lightrft.engines.base import MakeEngine
from lightrft.rewards.base import RewardRunner
from lightrft.strategy.base import Strategy
from lightrft.tasks.table import Task, load_tasks
from lightrft.trainer.rollout import needs_old
from lightrft.utils.device import available_bytes, pick_device
from lightrft.utils.imports import resolve

AGAINST = {"target": "what is right", "siblings": "their siblings"}
"""Option of judge.against -> what responses are compared with."""


@dataclass(frozen=True)
class Parts:
    """What the settings name, found and built, without weights."""

    device: torch.device
    available: int
    """Bytes free on the device before anything was loaded."""
    algorithm: Algorithm
    strategy: Strategy
    make_engine: MakeEngine
    tasks: Mapping[str, Task]
    """Tasks of training, by name."""
    eval_sets: Mapping[str, Task]
    """Tasks of evaluation, by name; empty without evaluation."""
    judge: RewardRunner
    eval_judge: RewardRunner | None
    """None where evaluation judges as training does."""


def looked_with(config: Config, device: torch.device) -> Strategy:
    """One process, which computes what any built-in backend computes on many; or the user's own backend."""
    if config.strategy.backend in STRATEGIES:
        return STRATEGIES[ALONE](config.strategy, device)
    make = resolve(STRATEGIES, config.strategy.backend, "strategy backend")
    return make(config.strategy, device)


def settings(section: Section, config: Config, stack: ExitStack) -> Parts:
    """Finds everything the settings name, and shows what one step of the run is made of."""
    tasks = training_tasks(config)
    device = pick_device(config.strategy.device)
    algorithm = build_for(config, resolve)
    resolve(TRAINERS, config.trainer, "trainer")
    eval_sets = load_tasks(evaluated_tasks(config))
    judge, eval_judge = judges(config, tasks, eval_sets)
    check_judging(config, [one for one in (judge, eval_judge) if one is not None])
    for one in (judge, eval_judge):
        if one is not None:
            stack.enter_context(one)
    parts = Parts(
        device=device,
        available=available_bytes(device),
        algorithm=algorithm,
        strategy=looked_with(config, device),
        make_engine=engine_maker(config, device),
        tasks=tasks,
        eval_sets=eval_sets,
        judge=judge,
        eval_judge=eval_judge,
    )
    show_settings(section, config, parts)
    return parts


def judges(
    config: Config, tasks: Mapping[str, Task], eval_sets: Mapping[str, Task]
) -> tuple[RewardRunner, RewardRunner | None]:
    """The judge of training, and that of evaluation where it is another one."""
    train = training_rewards(config, tasks.values())
    evaluate = {task.name: eval_rewards(config, task) for task in eval_sets.values()}
    # What has no weight, such as the cost of a constraint, changes no score.
    same = all(
        {part: weight for part, weight in train.get(name, {}).items() if weight} == weights
        for name, weights in evaluate.items()
    )
    models = model_rewards(config)
    eval_judge = None if same else RewardRunner(evaluate, config.rewards, models, config.sandbox)
    return RewardRunner(train, config.rewards, models, config.sandbox), eval_judge


def show_settings(section: Section, config: Config, parts: Parts) -> None:
    """The run in a few lines, and the arithmetic of a step."""
    roll, update = config.rollout, config.update
    answers, updates = roll.prompts_per_step * roll.group_size, update.epochs * update.num_minibatches
    lora = f", LoRA rank {config.model.lora.rank}" if config.model.lora.rank else ""
    section.fact("model", f"{config.model.path}, {config.model.dtype}{lora}, on {parts.device}")
    section.fact("tasks", ", ".join(f"{name} ({weight:g})" for name, weight in config.tasks.train.items()))
    section.fact(
        "rewards", "; ".join(f"{task}: {_weighted(weights)}" for task, weights in parts.judge.weights.items())
    )
    algo = config.algorithm
    section.fact(
        "algorithm",
        f"advantage {algo.advantage}, loss {algo.loss}, averaged by {algo.average}, groups kept: {algo.group_filter}",
    )
    section.fact(
        "a step",
        f"{roll.prompts_per_step} prompts x {roll.group_size} responses = {answers} responses of at most {roll.most_entries} {roll.entries_are}",
    )
    section.fact(
        "",
        f"= at most {answers * roll.most_entries:,} response {roll.entries_are}, in {updates} update{'s' * (updates > 1)} of {answers // update.num_minibatches} responses",
    )
    section.fact(
        "the run",
        f"{config.steps} steps = {config.steps * answers:,} responses, {actor_updates(config):,} updates",
    )
    section.fact("mismatch", correcting(config, parts.algorithm))
    section.fact("besides", ", ".join(besides(config, parts.algorithm)))


def correcting(config: Config, algorithm: Algorithm) -> str:
    """What is done against the mismatch of engine and trainer, and whether it is so by itself."""
    if not correction_of(algorithm):
        return f"not read by algorithm.loss={config.algorithm.loss}"
    by_itself = " (auto)" if config.algorithm.mismatch_correction == "auto" else ""
    limit = f", at most {config.algorithm.mismatch_limit:g}" if correction_of(algorithm) == "truncate" else ""
    return f"algorithm.mismatch_correction={correction_of(algorithm)}{by_itself}{limit}"


def besides(config: Config, algorithm: Algorithm) -> list[str]:
    """What a step does and holds beyond sampling and learning."""
    found = [f"{'a pass' if needs_old(config, algorithm) else 'no pass'} for old log-probs"]
    found.append(f"{'a' if algorithm.needs_reference else 'no'} reference model{following(config.algorithm)}")
    if algorithm.needs_critic:
        found.append("a critic")
    if algorithm.needs_teacher:
        found.append(f"the teacher {config.teacher.path}")
    if config.constraint.cost:
        found.append(f"{config.constraint.cost} kept at most {config.constraint.limit:g} on average")
    if config.judge.against != "none":
        found.append(f"responses compared with {AGAINST[config.judge.against]} in both orders")
    if config.rollout.extra_groups == "carry_over":
        found.append("surplus groups learned from in the next step")
    if config.replay.groups_per_step:
        found.append(
            f"{config.replay.groups_per_step} groups of the last {config.replay.max_age} steps learned from again"
        )
    return found


def following(config: AlgorithmConfig) -> str:
    """How the reference moves, and its weight."""
    told = f", steered towards {config.kl_target:g} per token" if config.kl_target else ""
    if config.reference_update_steps:
        far = (
            "becomes the policy"
            if config.reference_update_rate == 1
            else f"moves {config.reference_update_rate:g} of the way"
        )
        told += f", which {far} every {config.reference_update_steps} steps"
    return told


def _weighted(weights: Mapping[str, float]) -> str:
    return " + ".join(name if weight == 1 else f"{weight:g} x {name}" for name, weight in weights.items())
