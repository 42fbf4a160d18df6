"""The frame of a run, whatever it trains: step after step until the end, timed, written down, evaluated, and saved whenever
it is left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightrft.config import EvaluateConfig, HeldOutConfig, LogConfig, SFTLogConfig
from lightrft.console.progress import Progress
from lightrft.models.kinds import Write
from lightrft.models.lora import is_adapted
from lightrft.models.processor import Processor
from lightrft.parallel.status import STATUS
from lightrft.parallel.world import World
from lightrft.runs import trajectories as saved
from lightrft.runs.hooks import StepHook
from lightrft.runs.layout import RunFolder
from lightrft.runs.live import Events
from lightrft.runs.media import MediaCopies
from lightrft.runs.metrics import Logger
from lightrft.runs.sinks import Sinks
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.memory import MemoryPlan
from lightrft.trainer.generators import Generators
from lightrft.trainer.metrics import read_rate
from lightrft.trainer.stragglers import Stragglers
from lightrft.trainer.write import write_adapters, write_model
from lightrft.types import Trajectory
from lightrft.utils.atomic import explained
from lightrft.utils.device import peak_gib, resident_gib
from lightrft.utils.errors import boundary_of
from lightrft.utils.interrupt import Interrupt, Stopped

Metrics = dict[str, float]
log = logging.getLogger("lightrft")


class Part(Protocol):
    """Something that goes into checkpoints, the same on all ranks."""

    def state(self) -> Any:
        """The state to keep now; later steps do not change it."""
        ...

    def load(self, state: Any, /) -> None:
        """Takes a `state` back."""
        ...


class RankPart(Protocol):
    """Something that goes into checkpoints, and every rank has its own."""

    def state(self) -> Any:
        """The state to keep now; later steps do not change it."""
        ...

    def packed(self, state: Any, /) -> Any:
        """A `state` as it is written."""
        ...

    def load(self, packed: Any, /) -> None:
        """Takes what was `packed` back."""
        ...

    def share(self, ranks: Sequence[Any], rank: int, size: int, /) -> None:
        """Takes the share of rank `rank` of `size`, instead of `load`, from what another number of ranks packed."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """A held-out measurement."""

    name: str
    """Name in the metrics: evaluation, held_out_nll."""
    values: dict[str, float]
    """Task, or task/measure -> value, and the mean over tasks."""
    shown: str
    """For people."""


@dataclass
class Journal:
    """Where a run writes down what happens: metrics, responses, the terminal."""

    folder: Path
    progress: Progress
    logger: Logger | None
    """Only on the first rank."""
    rank: int = 0
    sinks: Sinks | None = None
    """Only on the first rank."""
    events: Events | None = None
    """What this rank does, and when."""
    media: MediaCopies | None = None
    """Where copies of media go, once a step was saved."""
    hook: StepHook | None = None
    """What looks at each step; only on the first rank."""

    def happened(self, event: str, step: int, **facts: Any) -> None:
        """An event of this rank."""
        if self.events is not None:
            self.events.add(event, step, **facts)

    def log(self, step: int, metrics: Metrics) -> None:
        """Metrics to the files."""
        if self.logger is not None:
            with explained(self.folder):
                self.logger.log(step, metrics)
        if self.sinks is not None:
            self.sinks.log(step, metrics)

    def sample(self, step: int, trajectories: Sequence[Trajectory], groups: int) -> None:
        """The responses of the first so many groups of this rank, to the sinks."""
        if self.sinks is not None and groups:
            self.sinks.groups(step, saved.sample(trajectories, groups))

    def save(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        processor: Processor,
        config: LogConfig | SFTLogConfig,
    ) -> None:
        """The responses of this rank, with small copies of what their prompts show."""
        if self.media is None:
            self.media = MediaCopies(RunFolder(self.folder).media, config.media_mib)
        with explained(self.folder):
            saved.save(
                self.folder, step, trajectories, rank=self.rank, pieces=processor.pieces,
                columns=config.token_columns, media=self.media,
            )  # fmt: skip


class Trainer(Protocol):
    """A trainer as its run sees it: one step of learning, and what of it belongs into a checkpoint."""

    whole: bool
    """Whether the weights are those of the last whole step, all of it written down: then they may be saved. A trainer sets it to
    False before it changes weights, the run to True when the step is written down."""

    @property
    def model(self) -> Trainable:
        """The model that the run is about."""
        ...

    @property
    def learners(self) -> Mapping[str, Trainable]:
        """The models that learn, by the names they have in checkpoints."""
        ...

    @property
    def followers(self) -> Mapping[str, Frozen]:
        """The frozen models that are no longer those that the run began with, by name."""
        ...

    @property
    def parts(self) -> Mapping[str, Part]:
        """All else that goes into checkpoints, the same on all ranks."""
        ...

    @property
    def rank_parts(self) -> Mapping[str, RankPart]:
        """Parts of the run of which every rank has its own state, by name."""
        ...

    def train_step(self, step: int) -> tuple[Metrics, list[Trajectory]]:
        """Takes one step, counted from 1; its metrics and its responses."""
        ...

    def record(self, step: int, metrics: Metrics, trajectories: list[Trajectory]) -> None:
        """Writes down a step with all its metrics."""
        ...

    def evaluate(self, label: str) -> Evaluation:
        """Measures on held-out data."""
        ...


def no_preparation() -> bool:
    """Nothing: the run has nothing to measure before its steps."""
    return False


@dataclass
class Run:
    """Takes the steps of a trainer. Every rank runs this same program."""

    command: str
    """The one that goes on with the run: train, sft."""
    steps: int
    """Steps of the whole run."""
    trainer: Trainer
    journal: Journal
    world: World
    memory_plan: MemoryPlan
    write: Write
    """How the model's folder is written."""
    checkpoints: Checkpoints
    evaluates: EvaluateConfig | HeldOutConfig
    """When to look at held-out data."""
    interrupt: Interrupt
    prepare: Callable[[], bool] = no_preparation
    """Measures what has to be known before a step, and whether there was anything; called by all ranks."""
    started: float = field(default_factory=time.perf_counter)
    """When this process began with the run, on the perf_counter clock."""
    earlier_seconds: float = 0.0
    """Time that the run took before it was resumed."""
    done: int = 0
    """Steps behind us."""
    peak_teraflops: float | None = None
    """Rate at which a device multiplies matrices at most, 10^12 operations a second, for train/mfu; None: not known."""
    base: str = ""
    """What tells the weights it began from, where its checkpoints hold only a part (models/base.py: needed_base)."""
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    """Label (before, step-000050, after) -> task -> held-out value."""
    rank_parts: dict[str, RankPart] = field(init=False)
    stragglers: Stragglers = field(init=False)
    _position: dict[str, Any] = field(default_factory=dict)
    """State of the last whole step, for its checkpoint, without models."""

    def __post_init__(self) -> None:
        self.stragglers = Stragglers(self.world)
        self.rank_parts = {**self.trainer.rank_parts, "generators": Generators()}

    @property
    def folder(self) -> Path:
        """Where all files of the run are."""
        return self.journal.folder

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, loading and evaluation included, over all resumes."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def train(self) -> None:
        """Takes the steps that are left, and saves. Raises Stopped if asked to stop before the last; what was done is saved first."""
        self.begin()
        if self.done >= self.steps:
            self.journal.progress.note(
                f"the run has taken all its {self.steps} steps: nothing is left to learn. To go on: lightrft {self.command} --resume "
                f"{self.folder} --steps {2 * self.steps}"
            )
        with self.interrupt:
            try:
                self.evaluate_if_due()
                for step in range(self.done + 1, self.steps + 1):
                    self.take(step)
            except Stopped as signal:
                self.save_now()
                self.journal.progress.note(
                    f"stopped by {signal} after step {self.done}; go on with: lightrft {self.command} --resume {self.folder}"
                )
                raise
            except Exception as error:
                self.world.begin_failing()
                log.info("failed after step %d: %s", self.done, boundary_of(error) or type(error).__name__)
                # In the middle of an update, or where not all ranks fail together, the last checkpoint is the state to go on from.
                if self.trainer.whole and self.world.can_save(self.done, error):
                    self.save_now()
                raise
        self.save_now()
        self.save_model()

    def begin(self) -> None:
        """From here on the phases of the memory plan hold; what was built or loaded is the state to go on from."""
        self.memory_plan.begin()
        STATUS.set_step(self.done)
        if self.journal.events is not None:
            events = self.journal.events
            self.memory_plan.ended = lambda end: events.phase(STATUS.step, end)
        self.journal.happened("start", self.done, processes=self.world.size)
        self._position = self._snapshot()

    def take(self, step: int) -> None:
        """One step, and all that is written down of it."""
        STATUS.set_step(step)
        if self.prepare():
            self.memory_plan.reset_seconds()  # no time of a step
            if self.checkpoints.config.every_steps:
                self.save()
        start = time.perf_counter()
        metrics, trajectories = self.trainer.train_step(step)
        self.done = step
        metrics |= self.stragglers.seconds(self.memory_plan, time.perf_counter() - start)
        metrics |= read_rate(metrics, self.world, self.peak_teraflops)
        metrics |= {
            "memory/rss_gib": self.world.max(resident_gib()),
            "memory/peak_gib": self.world.max(peak_gib()),
        }
        self.trainer.record(step, metrics, trajectories)
        self._position, self.trainer.whole = self._snapshot(), True
        self.journal.progress.step(step, metrics)
        if self.journal.hook is not None:
            self.journal.hook(step, metrics)
        self.evaluate_if_due()
        if self.checkpoints.due(step) and step < self.steps:
            self.save()
        self.interrupt.check()

    def evaluate_if_due(self) -> None:
        """Measures on held-out data, if that is asked for after the steps done so far and not known yet."""
        label = evaluation_label(self.evaluates, self.done, self.steps)
        if label is None or label in self.evaluations:
            return
        self.journal.progress.phase("evaluate")
        start = time.perf_counter()
        with self.trainer.model.averaged():
            found = self.trainer.evaluate(label)
        self.journal.happened(
            "evaluated", self.done, label=label, seconds=round(time.perf_counter() - start, 4)
        )
        self.memory_plan.reset_seconds()  # no time of a step
        self.evaluations[label] = found.values
        self.journal.log(self.done, {f"{found.name}/{task}": value for task, value in found.values.items()})
        self.journal.progress.note(found.shown)

    def save(self) -> None:
        """Writes a checkpoint of the last whole step; called by all ranks."""
        self.journal.progress.phase("save")
        STATUS.set_phase("save")
        learners, followers = self.trainer.learners, self.trainer.followers
        ranks = {
            name: self.world.gather(part.packed(self._position["ranks"][name]))
            for name, part in self.rank_parts.items()
        }
        state = {
            **self._position,
            "ranks": ranks,
            "numbers": {name: model.scalar_state() for name, model in learners.items()},
            "evaluations": dict(self.evaluations),
            "base": self.base,
        }
        models = {name: model.tensor_state() for name, model in learners.items()}
        models |= {name: model.tensor_state() for name, model in followers.items()}
        self.checkpoints.save(self._position["done"], state, models)
        self.journal.happened("saved", self._position["done"])

    def save_now(self) -> None:
        """Writes a checkpoint, and is done only when it is on the disk."""
        self.save()
        self.checkpoints.wait()

    def save_model(self) -> None:
        """The Hugging Face folder of the run, and that of its adapters if it has learned some; called by all ranks."""
        files = RunFolder(self.folder)
        with self.trainer.model.averaged():
            write_model(self.trainer.model, self.write, files.model, self.world)
            if is_adapted(self.trainer.model.module):
                write_adapters(self.trainer.model, files.adapter, self.world)

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what `save` wrote; called by all ranks."""
        for name, part in self.trainer.parts.items():
            if name in state["parts"]:  # not of what a setting has brought in since
                part.load(state["parts"][name])
        models = state["models"]
        for name, model in self.trainer.learners.items():
            model.load(models[name], state["numbers"][name])
        for name, follower in self.trainer.followers.items():
            if name in models:  # one that follows only since stands where the run began
                follower.load(models[name])
        for name, own in self.rank_parts.items():
            ranks = state["ranks"][name]
            if len(ranks) == self.world.size:
                own.load(ranks[self.world.rank])
            else:
                own.share(ranks, self.world.rank, self.world.size)
        self.done, self.evaluations = state["done"], dict(state["evaluations"])
        if self.done < self.steps:  # a finished run that is to go on
            self.evaluations.pop("after", None)
        self.earlier_seconds = state["seconds"]

    def _snapshot(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "seconds": self.seconds,
            "parts": {name: part.state() for name, part in self.trainer.parts.items()},
            "ranks": {name: part.state() for name, part in self.rank_parts.items()},
        }


def evaluation_label(config: EvaluateConfig | HeldOutConfig, done: int, total: int) -> str | None:
    """The label of the held-out measurement due after `done` of `total` steps: before, step-000050, after; or None."""
    if done == 0:
        label, asked = "before", config.before_and_after and config.before
    elif done == total:
        label, asked = "after", config.before_and_after
    else:
        label, asked = f"step-{done:06d}", config.every_steps > 0 and done % config.every_steps == 0
    return label if asked else None
