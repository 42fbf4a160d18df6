"""The part of the check that needs no weights: settings, token counts, rewards on right answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from rich.table import Table

from lightrft.algorithms.algorithm import Algorithm
from lightrft.algorithms.requirements import build_for
from lightrft.build.data import eval_rewards, own_rewards, training_rewards
from lightrft.build.judges import check_judging
from lightrft.build.models import actor_updates
from lightrft.build.tables import ALONE, ENGINES, STRATEGIES, TRAINERS
from lightrft.commands.check.report import Section
from lightrft.config import AlgorithmConfig, Config, TaskConfig
from lightrft.console.progress import sparkline
from lightrft.datasets.prompts import Opener, prepare
from lightrft.engines.base import MakeEngine
from lightrft.media import parts as media
from lightrft.models.processor import Processor
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import GoldReport, check_gold
from lightrft.strategy.base import Strategy
from lightrft.tasks.table import Split, Task, load_task
from lightrft.trainer.rollout import needs_old
from lightrft.types import Prompt, Record
from lightrft.utils.device import available_bytes, pick_device
from lightrft.utils.imports import resolve

UNLIMITED = 1 << 40
GOLDS = 32
"""Right answers of each task that go through the rewards."""
BLIND = 0.75
"""Share of full marks for answers to other questions from which on a reward can hardly tell right from wrong."""
READ = 16
"""Questions whose media are read."""
BUCKETS = 40
"""Columns of the histogram of prompt lengths."""


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
    """Those of training."""
    eval_sets: Mapping[str, Task]
    """Those of evaluation; none if there is none."""
    judge: RewardRunner
    eval_judge: RewardRunner | None
    """None where evaluation judges as training does."""


def looked_with(config: Config, device: torch.device) -> Strategy:
    """One process, which computes what any built-in backend computes on many; or the user's own backend."""
    if config.strategy.backend in STRATEGIES:
        return STRATEGIES[ALONE](config.strategy, device)
    make = resolve(STRATEGIES, config.strategy.backend, "strategy backend")
    return make(config.strategy, device)


@dataclass(frozen=True)
class Questions:
    """The data of a run as the model reads it."""

    processor: Processor
    records: Mapping[str, Sequence[Record]]
    """Training task -> its records."""
    exam_records: Mapping[str, Sequence[Record]]
    train: Sequence[Prompt]
    """What training draws from, after the policy for long prompts."""
    evaluate: Sequence[Prompt]
    """What one evaluation asks."""
    read: Sequence[Prompt]
    """What the model is tried on: all training prompts or, where they hold media, some with these read."""

    @property
    def longest(self) -> int:
        """Tokens of the longest training prompt, as far as they were read."""
        return max(len(p.token_ids) for p in self.read)


def settings(section: Section, config: Config, stack: ExitStack) -> Parts:
    """Finds everything the settings name, and shows what one step of the run is made of."""
    if not config.tasks.train:
        raise ValueError(
            "tasks.train is empty: nothing to learn. Name a task, e.g. --tasks.train gsm8k 1, or a layer such as demo."
        )
    device = pick_device(config.strategy.device)
    algorithm = build_for(config, resolve)
    resolve(TRAINERS, config.trainer, "trainer")
    tasks = {name: load_task(name) for name in config.tasks.train}
    evaluates = config.evaluate.before_and_after or config.evaluate.every_steps
    eval_sets = (
        {name: load_task(name) for name in (config.tasks.evaluate or config.tasks.train)} if evaluates else {}
    )
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
        make_engine=resolve(ENGINES, config.rollout.engine, "rollout engine"),
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
    eval_judge = None if same else RewardRunner(evaluate, config.rewards)
    return RewardRunner(train, config.rewards), eval_judge


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
        f"{roll.prompts_per_step} questions x {roll.group_size} answers = {answers} answers of at most {roll.max_tokens} tokens",
    )
    section.fact(
        "",
        f"= at most {answers * roll.max_tokens:,} answer tokens, in {updates} update{'s' * (updates > 1)} of {answers // update.num_minibatches} answers",
    )
    section.fact(
        "the run",
        f"{config.steps} steps = {config.steps * answers:,} answers, {actor_updates(config):,} updates",
    )
    section.fact("besides", ", ".join(besides(config, parts.algorithm)))


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
    if config.rollout.extra_groups == "carry_over":
        found.append("groups drawn too much learned from in the next step")
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


def data(section: Section, config: Config, parts: Parts, processor: Processor) -> Questions:
    """Reads both splits and counts their tokens through the real chat template."""
    table = Table(
        "task", "split", "prompts", "shortest", "median", "95 %", "longest", box=None, pad_edge=False
    )
    records: dict[Split, dict[str, Sequence[Record]]] = {"train": {}, "evaluate": {}}
    found: dict[Split, list[Prompt]] = {"train": [], "evaluate": []}
    splits: list[tuple[Split, Mapping[str, Task]]] = [("train", parts.tasks), ("evaluate", parts.eval_sets)]
    for split, tasks in splits:
        for name, task in tasks.items():
            loaded = task.load(split, config.tasks, config.data, config.seed if split == "train" else 0)
            counted, counts = prepare(loaded, processor, replace(config.tasks, max_prompt_tokens=UNLIMITED))
            lengths = sorted(len(p.token_ids) for p in counted)
            table.add_row(
                name,
                split,
                f"{len(lengths):,}",
                *(str(lengths[round(q * (len(lengths) - 1))]) for q in (0, 0.5, 0.95, 1)),
            )
            fitting = fit(section, f"{name}, {split}", counted, config.tasks)
            found[split] += fitting[: config.evaluate.limit or None] if split == "evaluate" else fitting
            records[split][name] = loaded
            skipped = loaded.skipped + counts.empty
            if skipped:
                section.warn(
                    f"{name}, {split}: {skipped} broken or empty rows are skipped (tasks.on_bad_record=skip)."
                )
    section.lines.insert(0, table)
    read = with_media(section, config, processor, found["train"])
    questions = Questions(
        processor, records["train"], records["evaluate"], found["train"], found["evaluate"], read
    )
    if questions.read:
        judge_data(section, config, questions)
    return questions


def with_media(
    section: Section, config: Config, processor: Processor, prompts: Sequence[Prompt]
) -> Sequence[Prompt]:
    """Some of the questions with their media read, as a run would when it draws them; all of them if they hold only text."""
    holding = [p for p in prompts if media.has_media(p.messages)]
    if not holding:
        return prompts
    some = [holding[i * len(holding) // READ] for i in range(READ)] if len(holding) > READ else holding
    opener = Opener(processor, replace(config.tasks, on_bad_record="skip", max_prompt_tokens=UNLIMITED))
    started = time.perf_counter()
    read = [opened for p in some if (opened := opener(p)) is not None]
    took = time.perf_counter() - started
    if len(read) < len(some):
        section.problem(
            f"the media of {len(some) - len(read)} of {len(some)} questions cannot be read, see above; the run would "
            + ("stop there." if config.tasks.on_bad_record == "raise" else "skip them.")
        )
    if not read:
        return []
    lengths = [len(p.token_ids) for p in read]
    held = max(sum(t.numel() * t.element_size() for t in p.media.values()) for p in read)
    section.fact(
        "media",
        f"read for {len(read)} of {len(holding):,} questions that hold some: {1000 * took / len(some):.0f} ms and at most "
        f"{held / 2**20:.1f} MiB each, {min(lengths)} to {max(lengths)} tokens with them",
    )
    over = sum(n > config.tasks.max_prompt_tokens for n in lengths)
    if over:
        section.warn(
            f"{over} of these have more than tasks.max_prompt_tokens={config.tasks.max_prompt_tokens} with their media: raise it, "
            "or lower media.max_pixels, media.max_frames or media.max_seconds."
        )
    return read


def fit(section: Section, what: str, prompts: Sequence[Prompt], config: TaskConfig) -> list[Prompt]:
    """The prompts that are left under tasks.on_long_prompt, cut where it says so; tells how many are not."""
    most = config.max_prompt_tokens
    fitting = [p for p in prompts if len(p.token_ids) <= most]
    over = len(prompts) - len(fitting)
    if not over:
        section.ok(f"{what}: all prompts have at most {most} tokens (tasks.max_prompt_tokens).")
        return fitting
    share = f"{what}: {over:,} of {len(prompts):,} prompts have more than tasks.max_prompt_tokens={most}"
    if config.on_long_prompt == "raise":
        section.problem(
            f"{share}; the run would stop. Raise it, or set tasks.on_long_prompt to skip or truncate_left."
        )
    elif config.on_long_prompt == "truncate_left":
        section.warn(
            f"{share}; they lose their first tokens, the system message among them (tasks.on_long_prompt=truncate_left)."
        )
        return [p if len(p.token_ids) <= most else replace(p, token_ids=p.token_ids[-most:]) for p in prompts]
    elif not fitting:
        section.problem(f"{share}: none is left. Raise it, or set tasks.on_long_prompt=truncate_left.")
    else:
        section.warn(f"{share}; they are skipped (tasks.on_long_prompt=skip).")
    return fitting


def judge_data(section: Section, config: Config, questions: Questions) -> None:
    """What the lengths and the two splits mean for the run."""
    lengths = [len(p.token_ids) for p in questions.train]
    low, high = min(lengths), max(lengths)
    section.fact("training lengths", f"{low} {histogram(lengths)} {high} tokens")
    drawn = config.steps * config.rollout.prompts_per_step
    section.fact("passes", f"the run draws {drawn:,} questions: {drawn / len(lengths):.2g} times all of them")
    seen = Counter(map(asked, questions.train))
    repeated = len(lengths) - len(seen)
    if repeated:
        section.fact("repeated", f"{repeated:,} training prompts are the same as an earlier one")
    overlap = sum(asked(p) in seen for p in questions.evaluate)
    if overlap:
        section.warn(
            f"{overlap:,} of {len(questions.evaluate):,} evaluation prompts are also in training: the score after training "
            "is partly that of memorised questions. Take them out of one of the two."
        )
    elif questions.evaluate:
        section.ok("no evaluation prompt is also a training prompt.")
    room = max(high, questions.longest) + config.rollout.max_tokens
    if room > config.update.tokens_per_micro_batch:
        section.warn(
            f"the longest prompt and a full answer are {room} tokens, more than update.tokens_per_micro_batch={config.update.tokens_per_micro_batch}: "
            "such an answer makes a larger batch of its own, and more memory is needed than the budget says."
        )


def asked(prompt: Prompt) -> Hashable:
    """What makes a question the same as another one: its tokens, and where its media lie (objects are never the same)."""
    sources = (source for _, source in media.parts(prompt.messages))
    return tuple(prompt.token_ids), *(s if isinstance(s, str) else id(s) for s in sources)


def histogram(lengths: Sequence[int]) -> str:
    """A row of block characters: how many prompts there are of each length, from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = min(BUCKETS, high - low + 1)
    counts = Counter((n - low) * width // (high - low + 1) for n in lengths)
    return sparkline([float(counts[i]) for i in range(width)], width)


def rewards(section: Section, config: Config, parts: Parts, questions: Questions) -> None:
    """Right answers must get full marks, and other questions' answers must not."""
    chosen = bool(config.rewards.functions)
    for name, task in parts.tasks.items():
        gold(section, name, task, questions.records[name], parts.judge, chosen=chosen)
    if parts.eval_judge is not None:
        for name, task in parts.eval_sets.items():
            gold(
                section,
                f"{name} (evaluation)",
                task,
                questions.exam_records[name],
                parts.eval_judge,
                chosen=chosen and not own_rewards(config, task),
            )


def gold(
    section: Section, name: str, task: Task, records: Sequence[Record], judge: RewardRunner, *, chosen: bool
) -> None:
    """The marks of some gold answers of one task; `chosen`: the rewards are the user's choice, not the task's own."""
    known = [record for record in records if record.target is not None]
    if not known:
        section.fact(name, "no right answers are known, so the rewards are not tried on them")
        return
    if judge.models:
        section.fact(
            name, f"judged by models ({', '.join(judge.models)}), tried below on the policy's answers"
        )
        return
    some = [known[i * len(known) // GOLDS] for i in range(GOLDS)] if len(known) > GOLDS else known
    report = check_gold(task.name, some, task.gold, judge)
    if report.ok:
        section.ok(
            f"{name}: {report.checked} right answers get full marks; answers to other questions get {report.wrong_score:.0%}."
        )
    else:
        judge_gold(section, name, report, chosen=chosen)
    if report.ok and report.wrong_score > BLIND:
        section.warn(
            f"{name}: answers to other questions get {report.wrong_score:.0%} of full marks. Does the reward look at the answer?"
        )


def judge_gold(section: Section, name: str, report: GoldReport, *, chosen: bool) -> None:
    """What it means that right answers do not all get full marks."""
    first = report.failures[0]
    score = (
        1 + sum(sum(f.parts.values()) / max(1, len(f.parts)) - 1 for f in report.failures) / report.checked
    )
    told = (
        f"{name}: {len(report.failures)} of {report.checked} right answers do not get full marks; they score {score:.2f} on average, "
        f"answers to other questions {report.wrong_score:.2f}. The first: {first.answer!r:.200} for target {first.target!r:.100} got {first.parts}."
    )
    if chosen and score > report.wrong_score:
        section.warn(f"{told} That is as it should be if rewards.functions holds more than correctness.")
    else:
        section.problem(
            f"{told} A model that answers rightly would not be told so: mend the reward, or the task's gold answers."
        )
