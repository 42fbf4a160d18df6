"""The options of learning preferences without reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.data import TaskConfig
from lightrft.config.given_pictures import GivenPicturesConfig
from lightrft.config.model import MediaConfig, ModelConfig
from lightrft.config.offline import GivenResponsesConfig, HeldOutConfig, SFTLogConfig, check_given_responses
from lightrft.config.reward_training import COMPARISONS
from lightrft.config.strategy import StrategyConfig
from lightrft.config.training import CheckpointConfig, OptimizerConfig, UpdateConfig


@dataclass(frozen=True, kw_only=True)
class DPOConfig(GivenResponsesConfig):
    """Training of a policy on given responses and which of them are better (`lightrft dpo`)."""

    loss: str = "dpo"
    """What is learned: dpo, robust, ipo, hinge, simpo, orpo, kto, or the import path of a function (values, grades, groups) -> (S,)."""
    options: dict[str, float] = field(default_factory=dict)
    """Numbers for the loss by name, e.g. {beta: 0.1, label_smoothing: 0.1}."""
    sft_coefficient: float = 0.0
    """Weight of minus the mean log-prob of a token of the better responses, added to any loss: keeps them from becoming less likely."""
    average: Literal["as_loss", "sum", "mean"] = "as_loss"
    """What a response is worth: the sum or the mean over its tokens of what the loss compares; as_loss: what the paper of the loss says."""
    output: str = ""
    """Name of the grades to learn from where rows have several, e.g. general; empty: those without a name."""
    max_tokens: int = 1024
    """Most tokens of a response."""
    on_long_response: Literal["raise", "skip"] = "skip"
    """A response over max_tokens: stop, or skip and count the prompt with all its responses; none is cut, which would teach lengths."""
    data: str = ""
    """Folder with the tasks' data sets. Empty: each task's hub data set."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TaskConfig = field(default_factory=lambda: TaskConfig(format=COMPARISONS))
    media: MediaConfig = field(default_factory=MediaConfig)
    pictures: GivenPicturesConfig = field(default_factory=GivenPicturesConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6))
    update: UpdateConfig = field(default_factory=UpdateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: HeldOutConfig = field(default_factory=HeldOutConfig)
    log: SFTLogConfig = field(default_factory=SFTLogConfig)

    def __post_init__(self) -> None:
        check_given_responses(
            "dpo", self, self.update, self.tasks,
            measures="counts the held-out pairs that it orders rightly", cure="score the finished model with `lightrft evaluate`",
        )  # fmt: skip
