"""The options of reinforcement learning, and checks across its sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightrft.config.algorithm import AlgorithmConfig
from lightrft.config.checks import refuse_idle
from lightrft.config.data import TaskConfig
from lightrft.config.environment import EnvironmentConfig
from lightrft.config.model import MediaConfig, ModelConfig, TeacherConfig
from lightrft.config.ranges import check_ranges
from lightrft.config.remote import RemoteConfig
from lightrft.config.rewards import (
    POLICY,
    ConstraintConfig,
    JudgeConfig,
    RewardConfig,
    RewardModelConfig,
    rewards_of,
)
from lightrft.config.rollout import ReplayConfig, RolloutConfig
from lightrft.config.sandbox import SandboxConfig
from lightrft.config.strategy import StrategyConfig
from lightrft.config.training import (
    CheckpointConfig,
    CriticConfig,
    EvaluateConfig,
    LogConfig,
    OptimizerConfig,
    UpdateConfig,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Reinforcement learning of a language model (`lightrft train`)."""

    run: str = ""
    """Run folder. Empty: runs/NAME-DATE-TIME."""
    name: str = "run"
    """Name of the run, used in the run folder and the logs."""
    seed: int = 0
    """Seed of every random choice."""
    steps: int = 100
    """Training steps: each samples responses and learns from them."""
    data: str = ""
    """Folder with the tasks' data sets (DATA/gsm8k/train.jsonl, ...). Empty: each task's hub data set."""
    trainer: str = "rl"
    """rl, or the import path of a subclass of RLTrainer."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TaskConfig = field(default_factory=TaskConfig)
    media: MediaConfig = field(default_factory=MediaConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    constraint: ConstraintConfig = field(default_factory=ConstraintConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_ranges("", self)
        self._refuse_idle()
        if self.critic.warmup_steps >= self.steps:
            raise ValueError(
                f"critic.warmup_steps={self.critic.warmup_steps} but steps={self.steps}: the policy would never learn. "
                "Lower critic.warmup_steps."
            )
        if self.tasks.stream_block and self.rollout.weighs_prompts:
            name, off = ("rest_passes", 0) if self.rollout.rest_passes else ("priority_floor", 1)
            raise ValueError(
                f"rollout.{name}={getattr(self.rollout, name)} has no effect with tasks.stream_block={self.tasks.stream_block}: nobody "
                f"knows the places of prompts that are gone. Set rollout.{name}={off}, or tasks.stream_block=0."
            )
        self._check_models()
        self._check_overlap()
        self._check_turns()
        if not self.rollout.begins_with_noise:
            self.evaluate.check_samples()
        unknown = sorted(self.rewards.scale.keys() - self.tasks.train.keys())
        if unknown:
            raise ValueError(
                f"rewards.scale names '{unknown[0]}', which is not among tasks.train: {', '.join(self.tasks.train) or 'none'}."
            )
        for key in rewards_of(self.rewards.functions, "", self.tasks.train) if self.tasks.train else ():
            if "/" in key and ":" not in key:
                raise ValueError(
                    f"rewards.functions has '{key}', and '{key.partition('/')[0]}' is not among tasks.train: "
                    f"{', '.join(self.tasks.train)}. Write TASK/REWARD, or the import path of a reward."
                )
        if self.algorithm.overlong_buffer > self.rollout.max_tokens:
            raise ValueError(
                f"algorithm.overlong_buffer={self.algorithm.overlong_buffer} is more than rollout.max_tokens={self.rollout.max_tokens}, so "
                "that every response would be penalized for its length. Lower algorithm.overlong_buffer, e.g. to a fifth of it."
            )
        answers = self.rollout.prompts_per_step * self.rollout.group_size
        if self.update.num_minibatches > answers:
            raise ValueError(
                f"update.num_minibatches={self.update.num_minibatches} but a step has only {answers} responses (rollout.prompts_per_step="
                f"{self.rollout.prompts_per_step} x rollout.group_size={self.rollout.group_size}). Lower update.num_minibatches."
            )

    def _refuse_idle(self) -> None:
        """Sections, or settings in them, that belong to something that is off."""
        for section, switch, cure in (
            ("constraint", "cost", "to a reward function, e.g. length"),
            ("teacher", "path", "to a model"),
            ("judge", "path", "to a model"),
            ("reward_model", "paths", "e.g. {helpful: RUN/model}"),
            ("replay", "groups_per_step", "e.g. 4"),
        ):
            options = getattr(self, section)
            if not getattr(options, switch):
                because = f"{section}.{switch}={getattr(options, switch) or 'nothing'}"
                refuse_idle(section, options, because=because, cure=f"set {section}.{switch} {cure}")

        if self.judge.path == POLICY:
            refuse_idle(
                "judge",
                self.judge,
                ["revision", "chat_template", "engine"],
                because=f"judge.path={POLICY}",
                cure="set judge.path to a model of its own",
            )

    def _check_models(self) -> None:
        coefficient = self.algorithm.teacher_coefficient
        if coefficient and not self.teacher.path:
            raise ValueError(
                f"algorithm.teacher_coefficient={coefficient} needs a teacher. Set teacher.path to a model, e.g. a larger one "
                "of the same family."
            )
        if self.teacher.path and not coefficient:
            raise ValueError(
                f"teacher.path={self.teacher.path} has no effect with algorithm.teacher_coefficient=0. Set "
                "algorithm.teacher_coefficient, e.g. 1."
            )
        if self.tasks.rewards and "file" not in {**self.tasks.train, **self.tasks.evaluate}:
            raise ValueError(
                "tasks.rewards is the reward of task file, which is not among tasks.train or tasks.evaluate. Set rewards.functions."
            )
        if self.model.lora.dropout:
            raise ValueError(
                f"model.lora.dropout={self.model.lora.dropout} with lightrft train: the ratio of new to old log-probs would be noise of the "
                "dropped inputs. Set it to 0; lightrft sft, reward and dpo take it."
            )
        if self.algorithm.reference_update_steps and self.model.lora.rank:
            raise ValueError(
                f"algorithm.reference_update_steps={self.algorithm.reference_update_steps} with model.lora.rank={self.model.lora.rank}: there the "
                "reference is the model without its adapters, which cannot follow. Set one of them to 0."
            )

    def _check_overlap(self) -> None:
        """The next step is sampled while rewards are computed elsewhere, and nothing else is sampled meanwhile."""
        if self.rollout.overlap_rewards and not self.rewards.workers:
            raise ValueError(
                "rollout.overlap_rewards with rewards.workers=0: rewards in the main process would hold up the rollout. Set rewards.workers=1."
            )

    def _check_turns(self) -> None:
        """A conversation is had to its end in the step it begins in: no environment lives on in a checkpoint."""
        if not self.environment.on:
            if "episodes" in {**self.tasks.train, **self.tasks.evaluate}:
                raise ValueError(
                    "task 'episodes' is what an environment makes of it, and there is none. Set environment.name, e.g. "
                    "--environment.name my_game.py:Game"
                )
            return
        named = f"environment.{'name' if self.environment.name else 'tools'}"
        for option in ("overlap_rewards", "max_staleness", "max_tokens_per_step"):
            if value := getattr(self.rollout, option):
                raise ValueError(
                    f"rollout.{option}={value} with {named}: conversations with an environment end in the step they begin in. Leave "
                    f"rollout.{option} out."
                )
        if self.environment.turn_tokens > self.rollout.max_tokens:
            raise ValueError(
                f"environment.turn_tokens={self.environment.turn_tokens} is more than rollout.max_tokens={self.rollout.max_tokens}, the limit of "
                "all turns with all replies. Lower it."
            )
