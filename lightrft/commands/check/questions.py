"""The data of a run as the model reads it: token counts, media, and what the rewards make of gold answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from lightrft.build.data import own_rewards
from lightrft.build.judges import check_targets
from lightrft.build.tasks import records_of
from lightrft.commands.check.report import Section
from lightrft.commands.check.settings import Parts
from lightrft.config import Config, TaskConfig
from lightrft.console.progress import sparkline
from lightrft.datasets.prompts import Opener, prepare
from lightrft.media import parts as media
from lightrft.models.kinds import PolicyKind
from lightrft.models.processor import Processor
from lightrft.rewards.asked import wanted_fields
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import GoldReport, check_gold
from lightrft.tasks.table import Split, Task
from lightrft.trainer.turns import Turns
from lightrft.types import Prompt, Record

UNLIMITED = 1 << 40
GOLDS = 32
"""Gold answers of each task that go through the rewards."""
BLIND = 0.75
"""Share of full marks for gold answers to other prompts from which on a reward can hardly tell right from wrong."""
READ = 16
"""Prompts whose media are read."""
BUCKETS = 40
"""Columns of the histogram of prompt lengths."""


@dataclass(frozen=True)
class Questions:
    """The data of a run as the model reads it."""

    kind: PolicyKind
    turns: Turns | None
    """What replies to the policy, where anything does."""
    records: Mapping[str, Sequence[Record]]
    """Training task -> its records."""
    exam_records: Mapping[str, Sequence[Record]]
    train: Sequence[Prompt]
    """What training samples from, after the policy for long prompts."""
    evaluate: Sequence[Prompt]
    """What one evaluation asks."""
    read: Sequence[Prompt]
    """What the model is tried on: all training prompts or, where they hold media, some with these read."""

    @property
    def processor(self) -> Any:
        """What turns messages into prompts."""
        return self.kind.processor

    @property
    def longest(self) -> int:
        """Tokens of the longest training prompt, as far as they were read."""
        return max(len(p.token_ids) for p in self.read)


def data(section: Section, config: Config, parts: Parts, kind: PolicyKind, turns: Turns | None) -> Questions:
    """Reads both splits and counts their tokens through the real chat template."""
    processor = kind.processor
    table = Table(
        "task", "split", "prompts", "shortest", "median", "95 %", "longest", box=None, pad_edge=False
    )
    records: dict[Split, dict[str, Sequence[Record]]] = {"train": {}, "evaluate": {}}
    found: dict[Split, list[Prompt]] = {"train": [], "evaluate": []}
    splits: list[tuple[Split, Mapping[str, Task]]] = [("train", parts.tasks), ("evaluate", parts.eval_sets)]
    for split, tasks in splits:
        for name, task in tasks.items():
            loaded = records_of(config, task, split)
            judge = parts.judge if split == "train" or parts.eval_judge is None else parts.eval_judge
            columns = wanted_fields(loaded, judge.weights.get(task.name, ()))
            unlimited = replace(config.tasks, max_prompt_tokens=UNLIMITED)
            counted, counts = prepare(loaded, processor, unlimited, columns)
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
        kind, turns, records["train"], records["evaluate"], found["train"], found["evaluate"], read
    )
    if questions.read:
        judge_data(section, config, questions, entrywise=parts.algorithm.entrywise)
    return questions


def with_media(
    section: Section, config: Config, processor: Processor, prompts: Sequence[Prompt]
) -> Sequence[Prompt]:
    """Some of the prompts with their media read, as a run would read them; all of them if they hold only text."""
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
            f"the media of {len(some) - len(read)} of {len(some)} prompts cannot be read, see above; the run would "
            + ("stop there." if config.tasks.on_bad_record == "raise" else "skip them.")
        )
    if not read:
        return []
    lengths = [len(p.token_ids) for p in read]
    held = max(sum(t.numel() * t.element_size() for t in p.media.values()) for p in read)
    section.fact(
        "media",
        f"read for {len(read)} of {len(holding):,} prompts that hold some: {1000 * took / len(some):.0f} ms and at most "
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
    """The prompts that are left under tasks.on_long_prompt, truncated where it says so; tells how many are not."""
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


def judge_data(section: Section, config: Config, questions: Questions, *, entrywise: bool) -> None:
    """What the lengths and the two splits mean for the run; `entrywise`: of its algorithm."""
    lengths = [len(p.token_ids) for p in questions.train]
    low, high = min(lengths), max(lengths)
    section.fact("training lengths", f"{low} {histogram(lengths)} {high} tokens")
    drawn = config.steps * config.rollout.prompts_per_step
    section.fact("passes", f"the run uses {drawn:,} prompts: {drawn / len(lengths):.2g} times all of them")
    seen = Counter(map(asked, questions.train))
    repeated = len(lengths) - len(seen)
    if repeated:
        section.fact("repeated", f"{repeated:,} training prompts are the same as an earlier one")
    overlap = sum(asked(p) in seen for p in questions.evaluate)
    if overlap:
        section.warn(
            f"{overlap:,} of {len(questions.evaluate):,} evaluation prompts are also in training: the score after training "
            "is partly that of memorised prompts. Take them out of one of the two."
        )
    elif questions.evaluate:
        section.ok("no evaluation prompt is also a training prompt.")
    judge_batch(section, config, questions, max(high, questions.longest), entrywise=entrywise)


def judge_batch(
    section: Section, config: Config, questions: Questions, longest: int, *, entrywise: bool
) -> None:
    """Warns if what is never divided over micro-batches reads more than one of them is to."""
    most, width = config.update.tokens_per_micro_batch, max(p.width for p in questions.read)
    told, room = "the longest prompt and a full response are", longest + config.rollout.max_tokens
    if width:
        told, room = "a denoising step reads", width
        if not entrywise:  # its loss looks at the whole response
            told, room = (
                f"algorithm.loss={config.algorithm.loss} looks at all steps of a response, which read",
                width * config.rollout.most_entries,
            )
    if room > most:
        section.warn(
            f"{told} {room:,} {'positions' if width else 'tokens'}, more than update.tokens_per_micro_batch={most}: such a "
            f"{'step' if width and entrywise else 'response'} makes a larger batch of its own, and more memory is needed than the budget says."
        )


def asked(prompt: Prompt) -> Hashable:
    """What makes a prompt the same as another one: its tokens, and where its media lie (objects are never the same)."""
    sources = (source for _, source in media.parts(prompt.messages))
    return tuple(prompt.token_ids), *(s if isinstance(s, str) else id(s) for s in sources)


def histogram(lengths: Sequence[int]) -> str:
    """A row of block characters: how many prompts there are of each length, from the shortest to the longest."""
    low, high = min(lengths), max(lengths)
    width = min(BUCKETS, high - low + 1)
    counts = Counter((n - low) * width // (high - low + 1) for n in lengths)
    return sparkline([float(counts[i]) for i in range(width)], width)


def rewards(section: Section, config: Config, parts: Parts, questions: Questions) -> None:
    """Gold answers must get full marks, and those to other prompts must not."""
    chosen = bool(config.rewards.functions)
    check_targets(config, parts.judge, questions.train)
    if parts.eval_judge is not None:
        check_targets(config, parts.eval_judge, questions.evaluate)
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
        section.fact(name, "no gold answers are known, so the rewards are not tried on them")
        return
    if judge.models:
        section.fact(
            name, f"judged by models ({', '.join(judge.models)}), tried below on the policy's responses"
        )
        return
    some = [known[i * len(known) // GOLDS] for i in range(GOLDS)] if len(known) > GOLDS else known
    report = check_gold(task.name, some, task.gold, judge)
    if report.ok:
        section.ok(
            f"{name}: {report.checked} gold answers get full marks; those to other prompts get {report.wrong_score:.0%}."
        )
    else:
        judge_gold(section, name, report, chosen=chosen)
    if report.ok and report.wrong_score > BLIND:
        section.warn(
            f"{name}: gold answers to other prompts get {report.wrong_score:.0%} of full marks. Does the reward look at the response?"
        )


def judge_gold(section: Section, name: str, report: GoldReport, *, chosen: bool) -> None:
    """What it means that gold answers do not all get full marks."""
    first = report.failures[0]
    score = (
        1 + sum(sum(f.parts.values()) / max(1, len(f.parts)) - 1 for f in report.failures) / report.checked
    )
    told = (
        f"{name}: {len(report.failures)} of {report.checked} gold answers do not get full marks; they score {score:.2f} on average, "
        f"those to other prompts {report.wrong_score:.2f}. The first: {first.answer!r:.200} for target {first.target!r:.100} got {first.parts}."
    )
    if chosen and score > report.wrong_score:
        section.warn(f"{told} That is as it should be if rewards.functions holds more than correctness.")
    else:
        section.problem(
            f"{told} A model that answers rightly would not be rewarded for it: mend the reward, or the task's gold answers."
        )
