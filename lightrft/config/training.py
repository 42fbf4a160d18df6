"""Gradient steps, and what a run saves, evaluates and logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.addresses import check_notify
from lightrft.config.checks import refuse_idle, refuse_idle_before
from lightrft.config.ranges import check_ranges

OPTIMIZERS = ("adamw", "adamw_8bit", "muon", "adafactor", "schedule_free")
"""Names of optimizers (strategy/optimizers.py)."""
TWO_SETS = (
    "an optimizer with train() and eval() turns the weights it learns at into those it is measured by and back with rounding, so that looking more "
    "often would change what is learned, and no checkpoint would hold what its groups count. Set name=schedule_free, which keeps both to the bit."
)
"""Why no such optimizer is taken from elsewhere."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    section = "optimizer"

    name: str = "adamw"
    """adamw, adamw_8bit (bitsandbytes), muon (matrices of layers; AdamW for the rest), adafactor, schedule_free (AdamW whose average
    of weights is evaluated and saved, while responses are sampled from those that learn), or the import path of a class."""
    options: dict[str, float] = field(default_factory=dict)
    """Options of the named optimizer that have no setting here, such as momentum of muon, r of schedule_free."""
    learning_rate: float = 1e-6
    """Peak learning rate."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Decay of the running mean and of the running square of the gradient; of AdamW."""
    eps: float = 1e-8
    """Added to the root of the running square; of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not applied to biases and norms."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0: never."""
    schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "constant"
    """How the learning rate goes on after the warm-up, as transformers has it by these names."""
    cycles: int = 1
    """Times that cosine_with_restarts falls, each time from the peak."""
    power: float = 1.0
    """Power of polynomial."""
    decay_steps: int = 0
    """Optimizer steps at the end over which warmup_stable_decay falls by a cosine."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0 linearly."""
    final_fraction: float = 0.0
    """Share of the peak learning rate that a schedule falls to, one step after the last: with 0 the last one still learns."""
    max_bad_steps: int = 5
    """Optimizer steps in a row with a NaN or infinite loss or gradient, each skipped and counted, before the run stops."""

    def __post_init__(self) -> None:
        check_ranges(self.section, self)
        if len(self.betas) != 2:
            raise ValueError(f"{self.section}.betas={self.betas}: give two numbers, e.g. [0.9, 0.999].")
        for name, owner in (
            ("cycles", "cosine_with_restarts"),
            ("power", "polynomial"),
            ("decay_steps", "warmup_stable_decay"),
        ):
            if self.schedule != owner:
                because = f"{self.section}.schedule={self.schedule}"
                refuse_idle(
                    self.section, self, [name], because=because, cure=f"set {self.section}.schedule={owner}"
                )
        if self.schedule == "warmup_stable_decay" and not self.decay_steps:
            raise ValueError(
                f"{self.section}.decay_steps=0: warmup_stable_decay needs an end to fall over. Set it, e.g. 100."
            )
        if self.name not in OPTIMIZERS and ":" not in self.name:
            meant = "schedulefree" in self.name.lower().replace("_", "").replace("-", "")
            raise ValueError(
                f"{self.section}.name={self.name}: there is no such optimizer. {'Did you mean schedule_free? ' if meant else ''}Take one of {', '.join(OPTIMIZERS)}, or the import path of your own: "
                "package.module:name or path/to/file.py:name."
            )
        if self.name == "schedule_free":
            self._check_schedule_free()
        if self.name == "adafactor" or ":" in self.name:
            because, cure = (
                f"{self.section}.name={self.name}",
                f"put options of that optimizer into {self.section}.options",
            )
            refuse_idle(self.section, self, ["betas", "eps"], because=because, cure=cure)

    def _check_schedule_free(self) -> None:
        if self.schedule != "constant":
            raise ValueError(
                f"{self.section}.schedule={self.schedule} with {self.section}.name=schedule_free, whose average of weights stands in for a falling "
                f"learning rate. Set {self.section}.schedule=constant; {self.section}.warmup_steps may stay."
            )
        if not self.betas[0]:
            raise ValueError(
                f"{self.section}.betas={self.betas} with {self.section}.name=schedule_free, which finds its average from the share of it that the first "
                f"puts into the weights that learn. Set {self.section}.betas=[0.9, {self.betas[1]:g}]."
            )
        for name, value in self.options.items():
            if not value >= 0:
                raise ValueError(
                    f"{self.section}.options.{name}={value:g}: a power of what the average weighs. Set it to 0 or more."
                )


@dataclass(frozen=True, kw_only=True)
class CriticOptimizerConfig(OptimizerConfig):
    """The optimizer of the critic and its schedule."""

    section = "critic.optimizer"

    learning_rate: float = 1e-5
    """Peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """The model that predicts rewards still to come; only where an advantage needs it, such as gae."""

    path: str = ""
    """Model it starts from, as in model.path, with a new head, or a reward model with its head, MODEL:OUTPUT where it has several; empty: the
    model the actor starts from."""
    cost_output: str = ""
    """Output of the reward model at critic.path from which the value of constraint.cost begins; empty: from 0."""
    optimizer: CriticOptimizerConfig = field(default_factory=CriticOptimizerConfig)
    """Optimizer of the critic."""
    value_clip: float = 0.2
    """How far a value may move from that at sampling before its gradient stops; 0: any distance."""
    warmup_steps: int = 0
    """Steps at the start of the run in which only the critic learns."""

    def __post_init__(self) -> None:
        check_ranges("critic", self)


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How one step's responses become gradient steps."""

    epochs: int = 1
    """Passes over the responses of a step."""
    num_minibatches: int = 1
    """Optimizer steps per pass, a count and not a size; responses are shared out evenly, groups split only where they must be."""
    tokens_per_micro_batch: int = 1024
    """Size of a micro-batch: most tokens the model reads in one forward and backward pass. Gradients accumulate and do not depend on it.
    A longer response is a micro-batch of its own; one of denoising steps is divided where the loss looks at each alone."""
    logits_per_chunk: int = 0
    """Most logits (positions x part of the vocabulary) that exist at once; 4 bytes each. 0: 4,194,304 on a CPU, where what fits the
    cache is fastest, 67,108,864 elsewhere."""
    share_prompts: bool = True
    """Compute a prompt once for all responses to it. false lays it before each response; slow, for checking."""
    skip_zero_advantage: bool = True
    """Neither read nor differentiate a response that cannot change the gradient, as all advantages of its tokens are 0 (all rewards of a group equal) or
    none is learned from; nothing is skipped that a KL, teacher or entropy term of the loss acts on. Metrics of tokens are then of those that were read. Only
    lightrft train; false reads all."""

    def __post_init__(self) -> None:
        check_ranges("update", self)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is saved, and when."""

    every_steps: int = 50
    """Save everything needed to go on, every so many steps; 0: only at the end or when stopped."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    background: bool = False
    """Copy to host memory and write while training goes on; the next checkpoint, or the end, waits for it."""

    def __post_init__(self) -> None:
        check_ranges("checkpoint", self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Held-out evaluation, in training and in `lightrft evaluate`."""

    every_steps: int = 0
    """Evaluate every so many steps; 0: only before and after."""
    before_and_after: bool = True
    """Evaluate before the first and after the last step."""
    before: bool = True
    """With before_and_after: false leaves out the evaluation before the first step."""
    limit: int = 256
    """Maximum prompts per task; 0: all."""
    samples: int = 1
    """Responses per prompt."""
    temperature: float = 0.0
    """Sampling temperature; 0: the most likely token."""
    top_p: float = 1.0
    """Sample among the likeliest tokens with this total probability."""
    max_tokens: int = 0
    """Maximum tokens per response; 0: rollout.max_tokens, and in `lightrft evaluate` the task's own room, where it has one."""
    pass_k: list[int] = field(default_factory=lambda: [1])
    """k of pass@k; each at most samples."""
    majority_k: list[int] = field(default_factory=list)
    """k of maj@k; each at most samples."""

    def __post_init__(self) -> None:
        check_ranges("evaluate", self)
        refuse_idle_before(self)
        too_large = [k for k in [*self.pass_k, *self.majority_k] if k > self.samples]
        if too_large:
            raise ValueError(
                f"evaluate.pass_k / majority_k={too_large}: need at least as many responses. Set evaluate.samples={max(too_large)} or more."
            )

    def check_samples(self) -> None:
        """ValueError for several responses to a prompt that would all be the same."""
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"evaluate.samples={self.samples} with evaluate.temperature=0 gives the same response {self.samples} times. Set evaluate.temperature, e.g. 0.7."
            )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes down."""

    progress: bool = True
    """Live progress in the terminal; false prints one line per step."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    curves: bool = True
    """Draw RUN/curves.png when the run ends."""
    to: list[str] = field(default_factory=list)
    """Where metrics and a sample of groups go besides the run folder: tensorboard, wandb, trackio, mlflow, swanlab, or import paths
    (mine.py:Sink). A sink that fails is counted and told once, and never stops the run."""
    on_step: str = ""
    """Function that looks at each step when it is written down, called as function(step, metrics, run) on the first rank, run being a
    lightrft.Run: an import path (mine.py:watch). One that fails is counted and told once, and never stops the run. Empty: none."""
    notify: str = ""
    """Address that is told, by a POST of JSON, when the run has ended, was stopped or has failed: http(s)://HOST/PATH, or the name of an
    environment variable that holds it, where the address is a secret itself. What fails is logged, and stops nothing. Empty: none."""
    notify_key: str = ""
    """Environment variable with a key that goes to the address of notify as a bearer token; empty: none."""
    sample_groups: int = 1
    """Groups of a step whose responses go to the sinks of log.to; 0: none."""
    trajectories_every_steps: int = 1
    """Save the responses of every n-th step for `lightrft view`; 0: none."""
    token_columns: bool = True
    """Save per-token log-probs and advantages with the trajectories."""
    media_mib: float = 64.0
    """MiB of small copies of the pictures, clips and sounds of saved prompts in the run folder; 0: their names alone."""
    capture_steps: list[int] = field(default_factory=list)
    """Steps whose whole input is written as a capsule for `lightrft replay`."""
    capture_spikes: float = 0.0
    """Capture a step whose gradient norm exceeds this many times its running median; 0: never. NaN steps always are."""

    def __post_init__(self) -> None:
        check_ranges("log", self)
        check_notify(self.notify, self.notify_key)
        if self.capture_spikes != 0 and not self.capture_spikes > 1:
            raise ValueError(
                f"log.capture_spikes={self.capture_spikes}: a spike is a gradient norm above its median. Set it above 1, e.g. 5, or to 0."
            )
