"""The options of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.data import TaskConfig
from lightrft.config.model import MediaConfig, ModelConfig
from lightrft.config.ranges import check_ranges
from lightrft.config.strategy import StrategyConfig
from lightrft.config.training import CheckpointConfig, OptimizerConfig, UpdateConfig

CONVERSATIONS = "lightrft.datasets.conversations:conversation"
"""The format of rows that hold whole conversations."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """What is held out of supervised fine-tuning (its loss) or of a reward model (its accuracy): tasks.evaluate, or tasks.train's evaluation
    split."""

    every_steps: int = 0
    """Measure it every so many steps; 0: only before and after."""
    before_and_after: bool = True
    """Measure it before the first and after the last step."""
    limit: int = 256
    """Most conversations or prompts per task; 0: all."""

    def __post_init__(self) -> None:
        check_ranges("evaluate", self)


@dataclass(frozen=True, kw_only=True)
class SFTLogConfig:
    """What a run without reinforcement learning writes down besides metrics.jsonl."""

    progress: bool = True
    """Live progress in the terminal; false prints one line per step."""
    tensorboard: bool = True
    """Write TensorBoard events."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning of a language model (`lightrft sft`)."""

    run: str = ""
    """Run folder. Empty: runs/NAME-DATE-TIME."""
    name: str = "run"
    """Name of the run, used in the run folder and the logs."""
    seed: int = 0
    """Seed of every random choice."""
    steps: int = 0
    """Training steps, one update each; 0: as many as `epochs` need."""
    epochs: float = 1.0
    """Passes over the training conversations, all tasks together; the last step may begin another to be full."""
    batch_size: int = 16
    """Conversations per step, over all ranks."""
    train_on: Literal["all_turns", "last_turn"] = "all_turns"
    """Which turns of the assistant to learn from: all of a conversation, or its last one only."""
    average: Literal["token", "sequence"] = "token"
    """token: all tokens weigh the same. sequence: all conversations do."""
    max_tokens: int = 1024
    """Most tokens of what follows the prompt: the first response that is learned from, and the turns after it."""
    on_long_response: Literal["raise", "skip", "truncate"] = "skip"
    """More than max_tokens: stop, skip and count, or drop tokens at the end, so that there is no end token."""
    data: str = ""
    """Folder with the tasks' data sets (DATA/gsm8k/train.jsonl, ...). Empty: each task's hub data set."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TaskConfig = field(default_factory=lambda: TaskConfig(format=CONVERSATIONS))
    media: MediaConfig = field(default_factory=MediaConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    update: UpdateConfig = field(default_factory=UpdateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: HeldOutConfig = field(default_factory=HeldOutConfig)
    log: SFTLogConfig = field(default_factory=SFTLogConfig)

    def __post_init__(self) -> None:
        check_ranges("sft", self)
        if self.steps and self.epochs != 1.0:
            raise ValueError(
                f"epochs={self.epochs} has no effect with steps={self.steps}. Set steps=0, or leave epochs out."
            )
        because = "lightrft sft, which takes one update per step"
        refuse_idle(
            "update",
            self.update,
            ["epochs", "num_minibatches"],
            because=because,
            cure="set batch_size or epochs",
        )
        because = "lightrft sft, which measures the held-out loss"
        cure = "score the finished model with `lightrft evaluate`"
        refuse_idle("tasks", self.tasks, ["rewards"], because=because, cure=cure)
