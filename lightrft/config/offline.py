"""What the options of all commands that learn from given responses have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightrft.config.addresses import check_notify
from lightrft.config.checks import refuse_idle, refuse_idle_before
from lightrft.config.data import TaskConfig
from lightrft.config.ranges import check_ranges
from lightrft.config.training import UpdateConfig


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """What is held out of supervised fine-tuning (its loss) or of a reward model (its accuracy): tasks.evaluate, or tasks.train's evaluation
    split."""

    every_steps: int = 0
    """Measure it every so many steps; 0: only before and after."""
    before_and_after: bool = True
    """Measure it before the first and after the last step."""
    before: bool = True
    """With before_and_after: false leaves out the measurement before the first step."""
    limit: int = 256
    """Most conversations or prompts per task; 0: all."""

    def __post_init__(self) -> None:
        check_ranges("evaluate", self)
        refuse_idle_before(self)


@dataclass(frozen=True, kw_only=True)
class SFTLogConfig:
    """What a run without reinforcement learning writes down besides metrics.jsonl."""

    progress: bool = True
    """Live progress in the terminal; false prints one line per step."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    curves: bool = True
    """Draw RUN/curves.png when the run ends."""
    to: list[str] = field(default_factory=list)
    """Where metrics go besides the run folder: tensorboard, wandb, trackio, mlflow, swanlab, or import paths
    (mine.py:Sink). A sink that fails is counted and told once, and never stops the run."""
    on_step: str = ""
    """Function that looks at each step when it is written down, called as function(step, metrics, run) on the first rank, run being a
    lightrft.Run: an import path (mine.py:watch). One that fails is counted and told once, and never stops the run. Empty: none."""
    notify: str = ""
    """Address that is told, by a POST of JSON, when the run has ended, was stopped or has failed: http(s)://HOST/PATH, or the name of an
    environment variable that holds it, where the address is a secret itself. What fails is logged, and stops nothing. Empty: none."""
    notify_key: str = ""
    """Environment variable with a key that goes to the address of notify as a bearer token; empty: none."""
    held_out_prompts: int = 16
    """Held-out prompts of each task whose responses are saved for `lightrft view` with what the model makes of them, whenever it is
    measured; 0: none."""
    token_columns: bool = True
    """Save per-token log-probs with them."""
    media_mib: float = 64.0
    """MiB of small copies of the pictures, clips and sounds of saved prompts in the run folder; 0: their names alone."""

    def __post_init__(self) -> None:
        check_ranges("log", self)
        check_notify(self.notify, self.notify_key)
        if not self.held_out_prompts:
            because, cure = "log.held_out_prompts=0", "set log.held_out_prompts above 0"
            refuse_idle("log", self, self._of_held_out, because=because, cure=cure)

    @property
    def _of_held_out(self) -> Sequence[str]:
        """Options of the saved responses."""
        return ("token_columns", "media_mib")


@dataclass(frozen=True, kw_only=True)
class SamplingLogConfig(SFTLogConfig):
    """What supervised fine-tuning writes down besides metrics.jsonl."""

    sampled_tokens: int = 128
    """Most tokens of the model's own greedy response to each of held_out_prompts, beside the one of the data; 0: none is sampled."""
    sample_sharded: bool = False
    """Sample it where the weights are in pieces (fsdp, zero3), too: each process then holds the whole model meanwhile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sampled_tokens:
            because, cure = "log.sampled_tokens=0", "set log.sampled_tokens above 0"
            refuse_idle("log", self, ["sample_sharded"], because=because, cure=cure)

    @property
    def _of_held_out(self) -> Sequence[str]:
        return (*super()._of_held_out, "sampled_tokens", "sample_sharded")

    @property
    def samples(self) -> bool:
        """Whether responses of the model are asked for."""
        return bool(self.held_out_prompts and self.sampled_tokens)


@dataclass(frozen=True, kw_only=True)
class GivenResponsesConfig:
    """Where a run from given responses is kept, and how long it goes on."""

    run: str = ""
    """Run folder. Empty: runs/NAME-DATE-TIME."""
    name: str = "run"
    """Name of the run, used in the run folder and the logs."""
    seed: int = 0
    """Seed of every random choice."""
    steps: int = 0
    """Training steps, one update each; 0: as many as `epochs` need."""
    epochs: float = 1.0
    """Passes over the training data, all tasks together; the last step may begin another to be full."""
    batch_size: int = 16
    """Conversations, or prompts with all their responses, per step, over all ranks."""


def check_given_responses(
    command: str,
    config: GivenResponsesConfig,
    update: UpdateConfig,
    tasks: TaskConfig,
    *,
    measures: str,
    cure: str,
) -> None:
    """ValueError for options of these commands that are out of range or have no effect.

    `measures`: what the command does with held-out data, instead of scoring responses; `cure`: where these are scored.
    """
    check_ranges(command, config)
    if config.steps and config.epochs != 1.0:
        raise ValueError(
            f"epochs={config.epochs} has no effect with steps={config.steps}. Set steps=0, or leave epochs out."
        )
    because = f"lightrft {command}, which takes one update per step"
    refuse_idle(
        "update", update, ["epochs", "num_minibatches"], because=because, cure="set batch_size or epochs"
    )
    because = f"lightrft {command}, which has no advantages"
    refuse_idle("update", update, ["skip_zero_advantage"], because=because, cure="use lightrft train")
    refuse_idle(
        "tasks",
        tasks,
        ["stream_block"],
        because=f"lightrft {command}, which reads all rows",
        cure="use lightrft train",
    )
    refuse_idle("tasks", tasks, ["rewards"], because=f"lightrft {command}, which {measures}", cure=cure)
