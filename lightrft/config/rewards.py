"""Rewards, the models that give some of them, and a constraint on their cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.ranges import check_ranges

POLICY = "policy"
"""judge.path: the policy judges itself."""


def rewards_of(functions: Mapping[str, float], task: str, tasks: Iterable[str]) -> dict[str, float]:
    """Reward -> weight of one of `tasks`: of the plain keys of rewards.functions, and over them of its own, TASK/REWARD."""
    longest = sorted(tasks, key=len, reverse=True)
    owners = {key: next((name for name in longest if key.startswith(f"{name}/")), "") for key in functions}
    plain = {key: weight for key, weight in functions.items() if not owners[key]}
    own = {
        key.removeprefix(f"{task}/"): weight
        for key, weight in functions.items()
        if owners[key] and owners[key] == task
    }
    return plain | own


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The rewards of responses. Empty functions: each task's own reward."""

    functions: dict[str, float] = field(default_factory=dict)
    """Reward name or import path -> weight, added up; replaces the tasks' own reward in training. E.g. {math: 1.0, format: 0.2}.
    TASK/REWARD -> weight for responses of one task alone, in place of the weight that the reward has for all."""
    timeout_seconds: float = 30.0
    """Longest time one call may take for one step's responses of one task; it runs in a child process that is then killed."""
    on_failure: Literal["raise", "drop"] = "raise"
    """A reward that raises, hangs, or returns NaN or infinity: stop the run, or drop those responses, counted and logged."""
    workers: int = 1
    """Child processes that compute rewards; 0 computes them in the main process, without time limit."""
    memory_gb: float = 8.0
    """Most memory of one of these processes, 10^9 bytes (Linux); a call that needs more counts as one that takes too long. 0: any."""
    environment: list[str] = field(default_factory=list)
    """Environment variables that these processes get besides those that programs need to run (docs/rewards.md), e.g. [MY_API_KEY]."""
    scale: dict[str, float] = field(default_factory=dict)
    """Task -> factor on the rewards of its responses before they are learned from; 1 where a task is not named."""
    normalise: Literal["none", "scale", "shift_and_scale"] = "none"
    """Divide rewards by the deviation of all rewards of their task so far in the run, on all ranks; or subtract the mean first."""

    def __post_init__(self) -> None:
        check_ranges("rewards", self)


@dataclass(frozen=True, kw_only=True)
class ConstraintConfig:
    """A cost that must stay low while the reward rises (PPO-Lagrangian). Off without cost."""

    cost: str = ""
    """Reward function (name or import path) that gives the cost of a response; it need not be among rewards.functions."""
    limit: float = 0.0
    """Mean cost that is allowed."""
    multiplier: float = 1.0
    """Initial Lagrange multiplier."""
    learning_rate: float = 0.1
    """Per step the multiplier rises by this times (mean cost - limit), never below 0."""
    max_multiplier: float = 100.0
    """Upper bound of the multiplier."""

    def __post_init__(self) -> None:
        check_ranges("constraint", self)
        if self.multiplier > self.max_multiplier:
            raise ValueError(
                f"constraint.multiplier={self.multiplier} is above constraint.max_multiplier={self.max_multiplier}. Lower it, or raise the bound."
            )


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """A language model that judges responses in words; only with the reward `judge`."""

    path: str = ""
    """Model, as in model.path, whole on every device while responses are judged; or `policy`: the policy itself, by rollout.engine."""
    revision: str = "main"
    """Branch, tag or commit of a hub model."""
    chat_template: str = ""
    """Chat template for a judge without one of its own; see model.chat_template."""
    max_length: int = 0
    """Most tokens of the judge's prompt with its reply; 0: what the model was made for. A response that needs more has no score
    (rewards.on_failure)."""
    engine: str = "native"
    """What asks the model of judge.path: native, or the import path of an engine that has its weights, e.g.
    examples/openai_engine.py:OpenAIEngine for a server; the model then gives the tokenizer alone."""
    against: Literal["none", "target", "siblings"] = "none"
    """none: a response is scored by itself. Otherwise two are compared, always in both orders, and the reward is the win rate: against
    the target, or against other responses to the prompt. A verdict that changes with the order is half a win."""
    rivals: int = 2
    """With against=siblings: how many of them each response is compared with, the next ones in a ring of its group, so that it meets
    twice as many (or all, in a small group)."""
    template: str = ""
    """Text file with the judge's prompt; {question}, {answer} and {target} are filled in, with against {question}, {answer_a}, {answer_b}
    and {target}. Empty: a general one."""
    score_pattern: str = r"(?i)score:\s*\**\s*(-?\d+(?:\.\d+)?)"
    """Regular expression whose group is the score in the judge's reply; the last one counts."""
    max_score: float = 10.0
    """The score of a perfect response, for which the reward is 1."""
    samples: int = 1
    """Replies per response, whose mean counts."""
    temperature: float = 0.0
    """Sampling temperature of the judge; 0 is greedy."""
    max_tokens: int = 256
    """Maximum tokens of a reply."""

    def __post_init__(self) -> None:
        check_ranges("judge", self)
        if self.against != "none":
            because = f"judge.against={self.against}, where the judge names a letter"
            refuse_idle(
                "judge", self, ["score_pattern", "max_score"], because=because, cure="set judge.against=none"
            )
        if self.against != "siblings":
            refuse_idle(
                "judge",
                self,
                ["rivals"],
                because=f"judge.against={self.against}",
                cure="set judge.against=siblings",
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"judge.samples={self.samples} with judge.temperature=0 gives the same reply {self.samples} times. Set "
                "judge.temperature, e.g. 0.7."
            )
        try:
            groups = re.compile(self.score_pattern).groups
        except re.error as error:
            raise ValueError(
                f"judge.score_pattern={self.score_pattern}: not a regular expression: {error}."
            ) from None
        if groups != 1:
            raise ValueError(
                f"judge.score_pattern={self.score_pattern}: must have one group, the score, and has {groups}."
            )


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """Models that compute numbers for whole responses, side by side: each key of paths is the name of a reward."""

    paths: dict[str, str] = field(default_factory=dict)
    """Name of a reward -> model with a trained head (transformers' ForSequenceClassification), as in model.path, or MODEL:OUTPUT, one of
    several by its label or its number from 0; left out, the only one, or the one called as the reward. Each model is whole on every device
    while responses are judged, once, in model.dtype. E.g. {helpful: RUN1/model, safe: RUN2/model:cost}."""
    revision: str = "main"
    """Branch, tag or commit of hub models."""
    chat_template: str = ""
    """Chat template for models without one of their own; see model.chat_template."""
    max_length: int = 0
    """Maximum tokens of a prompt with its response; 0: what the model was made for. A longer one has no reward
    (rewards.on_failure)."""
    tokens_per_micro_batch: int = 8192
    """Most tokens computed at once; a longer conversation goes alone."""

    def __post_init__(self) -> None:
        check_ranges("reward_model", self)
