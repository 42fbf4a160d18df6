"""The tasks that settings name, those to learn from and those that evaluations ask, and their records."""

from __future__ import annotations

from collections.abc import Mapping

from lightrft.config import Config, RunConfig
from lightrft.tasks.table import TASKS, Records, Split, Task, load_task, load_tasks


def training_tasks(config: RunConfig) -> dict[str, Task]:
    """Name in tasks.train -> the task. ValueError if there is none, before anything is read."""
    if not config.tasks.train:
        cure = "Name a task, e.g. --tasks.train gsm8k 1, or a layer such as demo."
        if not isinstance(config, Config):
            cure = "For your own rows: --tasks.train file 1 --tasks.train-file rows.jsonl"
        raise ValueError(f"tasks.train is empty: nothing to learn. {cure}")
    return load_tasks(config.tasks.train)


def check_names(config: RunConfig) -> None:
    """ValueError for a task of the settings that is not there, said before torch is imported. Import paths are not followed yet."""
    for name in (*config.tasks.train, *config.tasks.evaluate):
        if ":" not in name or name.partition(":")[0] in TASKS:
            load_task(name)


def evaluated_tasks(config: RunConfig) -> Mapping[str, float]:
    """Task that evaluations ask -> its weight: the training tasks unless others are named; empty if the run has no evaluation."""
    if not (config.evaluate.before_and_after or config.evaluate.every_steps):
        return {}
    return config.tasks.evaluate or config.tasks.train


def records_of(config: RunConfig, task: Task, split: Split) -> Records:
    """The records of one split of a task; those that evaluations ask are the same whatever the run's seed.

    ValueError for a record of another source: rewards, scores and what a checkpoint holds are looked up by it.
    """
    records = task.load(split, config.tasks, config.data, config.seed if split == "train" else 0)
    strange = next((record for record in records if record.source != task.name), None)
    if strange is not None:
        raise ValueError(
            f"task '{task.name}', {split}: its record {strange.id} has source='{strange.source}', by which rewards and scores are looked "
            f"up. Load it with source='{task.name}'."
        )
    return records
