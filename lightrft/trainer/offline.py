"""Learning from given responses: draw prompts with theirs, learn, measure what is held out, repeat. What is learned is an objective."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lightrft.config import OfflineConfig
from lightrft.datasets.loader import PromptLoader
from lightrft.parallel.status import STATUS
from lightrft.parallel.world import World
from lightrft.runs.layout import SAVED_STEP, EvaluationFolder, RunFolder
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.trainer.balance import balanced
from lightrft.trainer.batching import Batching, batch_tokens
from lightrft.trainer.held_out import HeldOutSamples
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.reference import Referee, answered
from lightrft.trainer.run import Evaluation, Journal, Metrics, Part, RankPart
from lightrft.types import Batch, Prompt, Terms, Trajectory
from lightrft.utils.interrupt import Interrupt

OPEN_AT_ONCE = 64
"""Held-out prompts whose media are in memory at the same time."""


class Objective(Protocol):
    """What is learned from given responses."""

    @property
    def averaging(self) -> Averaging:
        """How the losses of tokens become one number."""
        ...

    @property
    def num_sums(self) -> int:
        """How many sums `examine` gives."""
        ...

    def responses(self, prompt: Prompt, group: int, /) -> list[Trajectory]:
        """The responses that a prompt comes with, as one group."""
        ...

    def loss(self, model: Trainable, batch: Batch, /) -> Terms:
        """The loss of each token."""
        ...

    def describe(self, drawn: Sequence[Trajectory], /) -> Metrics:
        """Counts of this rank's part of a step, which are added over ranks."""
        ...

    def examine(self, model: Trainable, batch: Batch, /) -> Tensor:
        """(num_sums,) float64 on the CPU: sums over held-out responses that `evaluation` is made of. Called by all ranks."""
        ...

    def look(self, model: Trainable, batch: Batch, /) -> Tensor:
        """What the model makes of given responses, (T,) or (S, K), for `tell`. Called by all ranks."""
        ...

    def tell(self, answers: Sequence[Trajectory], found: Tensor, /) -> None:
        """Fills reward, parts and columns of the given responses of a batch, for people, from what `look` found of them."""
        ...

    def evaluation(
        self, label: str, sums: Mapping[str, Tensor], weights: Mapping[str, float], /
    ) -> Evaluation:
        """The held-out measurement from the sums of each task, over all ranks; `weights`: of tasks in the mean."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts of one task."""

    task: str
    prompts: Sequence[Prompt]
    weight: float


@dataclass
class OfflineTrainer:
    """Draw prompts, learn, repeat. Every rank runs this same program on its own prompts (SPMD)."""

    config: OfflineConfig
    objective: Objective
    world: World
    memory_plan: MemoryPlan
    batching: Batching
    model: Trainable
    prompts: PromptLoader
    """Prompts whose target is the response to learn, or the responses."""
    held_out: Sequence[HeldOut]
    journal: Journal
    interrupt: Interrupt
    referee: Referee | None = None
    """Who compares with the model that the run began with, where the objective does."""
    reads_on_device: bool = False
    """Whether something on the device reads what is learned from, such as a VAE."""
    samples: HeldOutSamples | None = None
    """What saves held-out responses for people, where some are to be saved."""
    whole: bool = field(default=True, init=False)

    def train_step(self, step: int) -> tuple[Metrics, list[Trajectory]]:
        """One update. Its metrics and its responses."""
        told = dict[str, float]()
        if self.referee is None and not self.reads_on_device:
            self.journal.progress.phase("train")
            drawn = self.draw(step)
            share = balanced(drawn, self.world)
        else:
            self.journal.progress.phase("score")
            with self.memory_plan(Phase.SCORE):  # what reads pictures is on the device then
                drawn = self.draw(step)
                share = balanced(drawn, self.world)
                if self.referee is not None:
                    told = self.referee.score(share, first=step == 1)
            self.journal.progress.phase("train")
        self.whole = False
        with self.memory_plan(Phase.TRAIN):
            metrics = self.learn(share)
        if self.referee is not None:
            self.referee.watch(metrics)
        return metrics | told | self.describe(drawn), drawn

    def record(self, step: int, metrics: Metrics, trajectories: list[Trajectory]) -> None:  # noqa: ARG002  # as Trainer has it
        """The metrics of a step; its responses are in the data."""
        self.journal.log(step, metrics)

    def draw(self, step: int) -> list[Trajectory]:
        """This rank's responses of a step, the media of their prompts read."""
        share = self.config.batch_size // self.world.size
        # Numbered over the run and over ranks, so that no two prompts are ever taken for one group.
        first, size = (step - 1) * self.config.batch_size + self.world.rank, self.world.size
        drawn = self.prompts.draw(share)
        return [
            t for n, prompt in enumerate(drawn) for t in self.objective.responses(prompt, first + n * size)
        ]

    def learn(self, drawn: Sequence[Trajectory]) -> Metrics:
        """One update."""
        # The seed decides which answers meet in which of several updates, and here is one.
        updates = self.batching.updates(drawn, seed=0)
        loss, averaging = partial(self.objective.loss, self.model), self.objective.averaging
        (metrics,) = optimize(self.model, updates, loss, averaging=averaging, batching=self.batching)
        return metrics

    def describe(self, drawn: Sequence[Trajectory]) -> Metrics:
        """Describes the responses of a step, over all ranks."""
        cut = sum(t.finish == "length" for t in drawn)
        local = [len(drawn), sum(len(t) for t in drawn), cut, batch_tokens(drawn)]
        count, length, cut, read = self.world.sum(torch.tensor(local, dtype=torch.float64)).tolist()
        seconds = self.world.max(self.memory_plan.seconds[Phase.TRAIN])
        return {
            "epoch": sum(self.prompts.drawn) / sum(len(prompts) for prompts in self.prompts.sources),
            "length/mean": length / count,
            "length/max": self.world.max(max(float(len(t)) for t in drawn)),
            "length/truncated_fraction": cut / count,
            **self.world.sum_by_name(self.objective.describe(drawn)),
            "train/tokens_per_second": read / max(seconds, 1e-9),
        }

    def evaluate(self, label: str) -> Evaluation:
        """What the objective measures on held-out prompts, by task."""
        with self.memory_plan(Phase.SCORE):
            sums = {one.task: self.examined(one.prompts) for one in self.held_out}
        found = self.objective.evaluation(label, sums, {one.task: one.weight for one in self.held_out})
        if self.samples is not None:
            self.samples.save(self, step := STATUS.step)
            if self.world.is_first:
                scores = {one.task: {SAVED_STEP: step, **of_task(found, one.task)} for one in self.held_out}
                EvaluationFolder(RunFolder(self.journal.folder).evaluation).write(label, scores)
        return found

    @torch.no_grad()
    def examined(self, prompts: Sequence[Prompt]) -> Tensor:
        """The objective's sums over the responses of these prompts, all ranks."""
        divergence = self.divergence(prompts)
        sums = torch.zeros(self.objective.num_sums, dtype=torch.float64)
        for opened in self.opened(prompts):
            answers = [t for place, p in opened for t in self.objective.responses(p, place)]
            if self.referee is not None:
                self.referee.fill(answers)
            for t in answers:
                t.baseline = divergence
            for _, batch, counts in self.batching.rounds(answers):
                found = self.objective.examine(self.model, batch)
                if counts:
                    sums += found
                if self.world.size == 1:
                    self.interrupt.raise_if_stopped()
        return self.world.sum(sums)

    def divergence(self, prompts: Sequence[Prompt]) -> float:
        """The divergence from the reference on these prompts, each with the responses to the next one, over all ranks; NaN where
        none is asked for."""
        if self.referee is None or not self.referee.judgement.needs_divergence:
            return math.nan
        local = torch.zeros(2, dtype=torch.float64)
        for opened in self.opened(prompts):
            others = [(p, n, self.objective.responses(prompts[(n + 1) % len(prompts)], n)) for n, p in opened]
            apart = [answered(p, n, t.token_ids, t.mask) for p, n, found in others for t in found]
            local += self.referee.log_ratios(apart)
        return self.referee.mean_ratio(local)

    def opened(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, Prompt]]]:
        """This rank's prompts and their places, some at a time, their media read; equally often on all ranks."""
        yield from map(self.open, self.some(prompts))

    def some(self, prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, Prompt]]]:
        """`opened` before media are read, for `open`."""
        mine = list(enumerate(prompts))[self.world.rank :: self.world.size]
        for start in range(0, int(self.world.max(len(mine))), OPEN_AT_ONCE):
            yield mine[start : start + OPEN_AT_ONCE]

    def open(self, some: Sequence[tuple[int, Prompt]]) -> list[tuple[int, Prompt]]:
        """Prompts and their places with their media read, in phase score: what reads pictures is on the device then."""
        return [(n, o) for n, p in some if (o := self.prompts.open(p)) is not None]

    @property
    def learners(self) -> Mapping[str, Trainable]:
        """The one model that learns, by its name in checkpoints."""
        return {"model": self.model}

    @property
    def followers(self) -> Mapping[str, Frozen]:
        """No frozen model changes."""
        return {}

    @property
    def parts(self) -> Mapping[str, Part]:
        """The stream of prompts, and what the comparison with the reference remembers, which go into checkpoints."""
        return {"prompts": self.prompts, **({} if self.referee is None else {"referee": self.referee})}

    @property
    def rank_parts(self) -> Mapping[str, RankPart]:
        """The frame keeps the random generators."""
        return {}


def of_task(found: Evaluation, task: str) -> dict[str, float]:
    """What was measured of one task by measure; a measure without a name has that of the evaluation."""
    own, start = {found.name: found.values[task]} if task in found.values else {}, f"{task}/"
    return own | {key.removeprefix(start): v for key, v in found.values.items() if key.startswith(start)}
