"""The options of training a reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.data import TaskConfig
from lightrft.config.model import MediaConfig, ModelConfig
from lightrft.config.offline import GivenResponsesConfig, HeldOutConfig, SFTLogConfig, check_given_responses
from lightrft.config.strategy import StrategyConfig
from lightrft.config.training import CheckpointConfig, OptimizerConfig, UpdateConfig

COMPARISONS = "lightrft.datasets.preferences:compared"
"""The format of rows that hold a chosen and a rejected response."""


@dataclass(frozen=True, kw_only=True)
class RewardTrainingConfig(GivenResponsesConfig):
    """Training of a reward model from comparisons of responses (`lightrft reward`)."""

    outputs: list[str] = field(default_factory=lambda: ["score"])
    """Names of what the model computes for a response, e.g. [general, cost]; grades without a name are those of the first."""
    loss: str = "bradley_terry"
    """What is learned from the grades of a prompt's responses: bradley_terry (which one is better), regression (the grade), or the import
    path of a function (values, grades, groups) -> (S,)."""
    options: dict[str, float] = field(default_factory=dict)
    """Numbers for the loss by name, e.g. {margin: 1, centring: 0.01}."""
    signed: list[str] = field(default_factory=list)
    """Outputs whose sign is learned too, so that 0 is the border, as a cost has it: above 0 is unsafe."""
    max_tokens: int = 1024
    """Most tokens of a response."""
    on_long_response: Literal["raise", "skip"] = "skip"
    """A response over max_tokens: stop, or skip and count the prompt with all its responses; none is cut, which would teach lengths."""
    data: str = ""
    """Folder with the tasks' data sets. Empty: each task's hub data set."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TaskConfig = field(default_factory=lambda: TaskConfig(format=COMPARISONS))
    media: MediaConfig = field(default_factory=MediaConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    update: UpdateConfig = field(default_factory=UpdateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: HeldOutConfig = field(default_factory=HeldOutConfig)
    log: SFTLogConfig = field(default_factory=SFTLogConfig)

    def __post_init__(self) -> None:
        check_given_responses(
            "reward", self, self.update, self.tasks,
            measures="counts the held-out pairs that it orders rightly", cure="teach a policy with the finished model by `lightrft train`",
        )  # fmt: skip
        if not self.outputs or len(set(self.outputs)) < len(self.outputs) or not all(self.outputs):
            raise ValueError(
                f"outputs={self.outputs}: needs one name or more, each different. For example: outputs=[score]."
            )
        strange = [name for name in self.signed if name not in self.outputs]
        if strange:
            raise ValueError(
                f"signed={self.signed}: '{strange[0]}' is none of outputs={self.outputs}. Add it there."
            )
        refuse_idle(
            "update",
            self.update,
            ["logits_per_chunk"],
            because="lightrft reward, whose model has no logits of tokens",
            cure="lower update.tokens_per_micro_batch to save memory",
        )
