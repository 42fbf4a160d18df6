"""The tasks of a run: data, format and reward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The tasks to learn (data, format and reward), mixed by weight."""

    train: dict[str, float] = field(default_factory=dict)
    """Task name -> share of the prompts, e.g. {gsm8k: 1.0}. A name, NAME:OPTION, or an import path."""
    evaluate: dict[str, float] = field(default_factory=dict)
    """Task name -> weight in the mean evaluation score. Empty: the tasks of train, on their evaluation split."""
    train_file: str = ""
    """For task `file`: json/jsonl/csv/parquet file, folder or pattern of them, address (hf://, s3://), hub name, folder that datasets saved, or
    folder of a run (whose responses are the rows) to train on."""
    evaluate_file: str = ""
    """For task `file`: the same for evaluation. Must not be the training file."""
    train_split: str = "train"
    """For task `file` from a hub name: split to train on. From a run: steps, e.g. 1-8."""
    evaluate_split: str = "test"
    """For task `file` from a hub name: split to evaluate on. From a run: steps, e.g. 9-."""
    rewards: dict[str, float] = field(default_factory=dict)
    """For task `file`: its own reward, name or import path -> weight, by which evaluation is scored whatever is trained on. Empty:
    rewards.functions."""
    format: str = "columns"
    """For task `file`: how a row becomes messages and target: a name or an import path."""
    prompt_field: str = "prompt"
    """For format `columns`: the field with the prompt, or with a list of messages, also as JSON text; dotted names reach inside."""
    target_field: str = "target"
    """For format `columns`: the field with the reference answer (reward_model.ground_truth reaches inside one); empty: none."""
    system: str = ""
    """System message put before each prompt; empty: none."""
    instruction: str = ""
    """Text added after each prompt; empty: the task's own."""
    media_root: str = ""
    """Folder below which the files that records name must lie (pictures, clips, sounds); /: anywhere. Empty: the folder of their data."""
    on_bad_record: Literal["raise", "skip"] = "raise"
    """A row that is broken or lacks a field: stop with file and line, or skip, count and log it."""
    on_long_prompt: Literal["raise", "skip", "truncate_left"] = "skip"
    """A prompt over max_prompt_tokens: stop, skip and count, or drop tokens on the left."""
    max_prompt_tokens: int = 1024
    """Longest prompt, in tokens."""
    train_limit: int = 0
    """Use only the first so many training rows; 0: all."""
    stream_block: int = 0
    """Stream the training rows of task `file`: read so many at a time, in the data's order, shuffled among themselves; 0: read all at the
    start and shuffle all. Only for lightrft train."""

    def __post_init__(self) -> None:
        check_ranges("tasks", self)
        if self.stream_block and set(self.train) - {"file"}:
            raise ValueError(
                f"tasks.stream_block={self.stream_block} streams task `file` alone, and tasks.train has {', '.join(self.train)}. Set "
                "tasks.train={file: 1} with tasks.train_file, or tasks.stream_block=0."
            )
        if self.stream_block and self.train_limit:
            raise ValueError(
                f"tasks.train_limit={self.train_limit} is of rows that are all read; tasks.stream_block={self.stream_block} reads them as "
                "they come. Set one of them to 0."
            )
