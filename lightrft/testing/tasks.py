"""What every task must do, as a list of checks: for ours, and for the author of another one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightrft.config import RewardConfig, TaskConfig
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.tasks.base import Records, Split, Task, extractor
from lightrft.testing.checks import Checked, lacks, run_checks
from lightrft.types import Record

MOST_WRONG = 0.5
"""Share of full marks that answers to other questions may get on average."""


@dataclass
class TaskBench:
    """A task, the settings it is loaded with, and its records once they are loaded."""

    task: Task
    config: TaskConfig
    data: str
    seed: int
    limit: int
    rewards: Mapping[str, float]
    splits: tuple[Split, ...]
    _loaded: dict[Split, Records] = field(default_factory=dict)

    def load(self, split: Split) -> Records:
        """The records of a split, read anew. ValueError as the task raises it."""
        return self.task.load(split, self.config, self.data, self.seed)

    def records(self, split: Split) -> list[Record]:
        """The first `limit` records of a split, read once."""
        if split not in self._loaded:
            self._loaded[split] = self.load(split)
        return self._loaded[split][: self.limit]

    def all(self) -> list[Record]:
        """The records of all its splits."""
        return [record for split in self.splits for record in self.records(split)]


def every_split_has_records(bench: TaskBench) -> None:
    for split in bench.splits:
        lacks(not bench.records(split), f"no record in the split '{split}'")


def ids_are_unique_and_the_source_is_the_name_of_the_task(bench: TaskBench) -> None:
    for split in bench.splits:
        name, count = Counter(record.id for record in bench.records(split)).most_common(1)[0]
        lacks(count > 1, f"{count} records with the id '{name}' in the split '{split}'")
    for record in bench.all():
        lacks(
            record.source != bench.task.name, f"{record.id} is of '{record.source}', not '{bench.task.name}'"
        )


def questions_are_messages_that_the_assistant_answers(bench: TaskBench) -> None:
    for record in bench.all():
        lacks(not record.messages, f"{record.id} has no message")
        for message in record.messages:
            lacks(not message.get("role") or not message.get("content"), f"{record.id}: {message!r:.100}")
        last = record.messages[-1]["role"]
        lacks(last == "assistant", f"the last message of {record.id} is the assistant's")


def the_same_seed_gives_the_same_records(bench: TaskBench) -> None:
    for split in bench.splits:
        again = bench.load(split)[: bench.limit]
        lacks(again != bench.records(split), f"other records of the split '{split}' when loaded again")


def no_question_is_in_both_splits(bench: TaskBench) -> None:
    if len(bench.splits) < 2:
        return
    first, second = ({_text(r) for r in bench.load(split)} for split in bench.splits)
    shared = first & second
    lacks(bool(shared), f"{len(shared)} prompts, among them {next(iter(shared), '')[:100]}")


def gold_answers_get_full_marks_and_those_to_other_questions_do_not(bench: TaskBench) -> None:
    lacks(not bench.rewards, "it has no rewards; give check_task those that rewards.functions will name")
    with RewardRunner({bench.task.name: bench.rewards}, RewardConfig(workers=0)) as judge:
        report = check_gold(bench.task.name, bench.all(), bench.task.gold, judge)
    lacks(not report.ok, str(report))
    lacks(report.wrong_score > MOST_WRONG, str(report))


def a_vote_counts_the_gold_answer(bench: TaskBench) -> None:
    extract = bench.task.extract or extractor(bench.rewards)
    for record in bench.all():
        gold = bench.task.gold(record)
        lacks(
            not extract(gold),
            f"nothing is extracted of {gold[:100]!r}, the gold answer of {record.id}",
        )


def _text(record: Record) -> str:
    return json.dumps(record.messages, sort_keys=True, default=str)


CHECKS = (
    every_split_has_records,
    ids_are_unique_and_the_source_is_the_name_of_the_task,
    questions_are_messages_that_the_assistant_answers,
    the_same_seed_gives_the_same_records,
    no_question_is_in_both_splits,
    gold_answers_get_full_marks_and_those_to_other_questions_do_not,
    a_vote_counts_the_gold_answer,
)


def check_task(
    task: Task,
    config: TaskConfig | None = None,
    *,
    data: str = "",
    seed: int = 0,
    limit: int = 200,
    rewards: Mapping[str, float] | None = None,
    splits: tuple[Split, ...] = ("train", "evaluate"),
) -> Checked:
    """Every check of a task, and what is lacking in words; print it, or assert its `ok`.

    `config`, `data`, `seed`: as a run would give them to `task.load`. `limit`: records of each split that are looked at;
    all are where splits are compared. `rewards`: by default the task's own. `splits`: those that the task has.
    """
    own = task.rewards if rewards is None else rewards
    return run_checks(CHECKS, TaskBench(task, config or TaskConfig(), data, seed, limit, own, splits))
