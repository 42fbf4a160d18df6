"""The options of supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.data import TaskConfig
from lightrft.config.given_pictures import TaughtPicturesConfig
from lightrft.config.model import MediaConfig, ModelConfig
from lightrft.config.offline import (
    GivenResponsesConfig,
    HeldOutConfig,
    SamplingLogConfig,
    check_given_responses,
)
from lightrft.config.ranges import check_ranges
from lightrft.config.strategy import WHOLE, StrategyConfig
from lightrft.config.training import CheckpointConfig, OptimizerConfig, UpdateConfig

CONVERSATIONS = "lightrft.datasets.conversations:conversation"
"""The format of rows that hold whole conversations."""


@dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    """How given responses are masked; only where model.path is a masked diffusion language model."""

    draws: int = 1
    """Draws of masks for a response in a step, each with a level of its own; the loss is their mean. One is that of LLaDA."""
    canvas: int = 0
    """Tokens that a response is filled up to with end tokens, which are learned as well, as LLaDA does to the longest of a batch. Set it to the
    rollout.max_tokens that is sampled with; 0: none is added."""
    predicts: Literal["own", "next"] = "own"
    """Where the model says a token: at its own place (LLaDA), or at the one before (Dream)."""

    def __post_init__(self) -> None:
        check_ranges("masked", self)


@dataclass(frozen=True, kw_only=True)
class SFTConfig(GivenResponsesConfig):
    """Supervised fine-tuning (`lightrft sft`)."""

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
    masked: MaskedConfig = field(default_factory=MaskedConfig)
    pictures: TaughtPicturesConfig = field(default_factory=TaughtPicturesConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    update: UpdateConfig = field(default_factory=UpdateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: HeldOutConfig = field(default_factory=HeldOutConfig)
    log: SamplingLogConfig = field(default_factory=SamplingLogConfig)

    def __post_init__(self) -> None:
        check_given_responses(
            "sft", self, self.update, self.tasks,
            measures="measures the held-out loss", cure="score the finished model with `lightrft evaluate`",
        )  # fmt: skip
        if self.strategy.backend in WHOLE:
            because = f"strategy.backend={self.strategy.backend}, whose processes hold the whole model anyway"
            refuse_idle(
                "log",
                self.log,
                ["sample_sharded"],
                because=because,
                cure="take a backend whose weights are in pieces",
            )
