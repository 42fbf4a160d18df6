"""Supervised fine-tuning: read conversations, learn to say what the assistant said."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from lightrft.algorithms.losses import negative_log_likelihood
from lightrft.config import SFTConfig
from lightrft.console.progress import Progress
from lightrft.datasets.conversations import demonstration
from lightrft.datasets.loader import PromptLoader
from lightrft.models.logprobs import logprobs
from lightrft.models.processor import Processor
from lightrft.parallel.status import STATUS
from lightrft.parallel.world import World
from lightrft.runs.metrics import Logger
from lightrft.strategy.base import Trainable
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.trainer.balance import balanced
from lightrft.trainer.batching import batch_tokens, dummy_answer, plan, rounds
from lightrft.trainer.loop import examination, take_steps, write_model
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.stragglers import Stragglers
from lightrft.types import Batch, Prompt, Terms, Trajectory
from lightrft.utils.atomic import explained
from lightrft.utils.device import peak_gib, resident_gib
from lightrft.utils.interrupt import Interrupt
from lightrft.utils.seeding import generator_states, restore_generators

Metrics = dict[str, float]
OPEN_AT_ONCE = 64
"""Held-out conversations whose media are in memory at the same time."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out conversations of one task."""

    task: str
    prompts: Sequence[Prompt]
    weight: float


@dataclass
class SFTTrainer:
    """Draw conversations, learn, repeat. Every rank runs this same program on its own conversations (SPMD). Built by sft.py."""

    config: SFTConfig
    steps: int
    """Of the whole run."""
    run: Path
    world: World
    device: torch.device
    memory_plan: MemoryPlan
    model: Trainable
    processor: Processor
    prompts: PromptLoader
    """Prompts whose target is the answer to learn (see datasets/conversations.py)."""
    held_out: Sequence[HeldOut]
    checkpoints: Checkpoints
    logger: Logger | None
    """Only on the first rank."""
    progress: Progress
    done: int = 0
    """Steps behind us."""
    losses: dict[str, Metrics] = field(default_factory=dict)
    """Label (before, step-000050, after) -> task -> held-out loss."""
    started: float = field(default_factory=time.perf_counter)
    """When this process began with the run, on the perf_counter clock."""
    earlier_seconds: float = 0.0
    """Time that the run took before it was resumed."""
    interrupt: Interrupt = field(default_factory=Interrupt)
    stragglers: Stragglers = field(init=False)
    whole: bool = True
    """Whether the weights are those of the last whole step, all of it written down: then they may be saved."""
    _position: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stragglers = Stragglers(self.world)

    def train(self) -> None:
        """Runs the steps that are left. Raises Stopped if asked to stop before the last; what was done is saved first."""
        self._position = self._snapshot()
        take_steps(self, self.steps, "sft")

    def train_step(self, step: int) -> None:
        """One update, and all that is written down of it."""
        start = time.perf_counter()
        self.progress.phase("train")
        drawn = self.draw(step)
        self.whole = False
        with self.memory_plan(Phase.TRAIN):
            metrics = self.learn(balanced(drawn, self.world))
        self.done = step
        seconds = self.stragglers.seconds(self.memory_plan, time.perf_counter() - start)
        metrics |= self.describe(drawn, seconds["seconds/train"]) | seconds
        metrics |= {
            "memory/rss_gib": self.world.max(resident_gib()),
            "memory/peak_gib": self.world.max(peak_gib()),
        }
        self.progress.step(step, metrics)
        self._log(metrics)
        self._position, self.whole = self._snapshot(), True
        self.examine()
        if self.checkpoints.due(step) and step < self.steps:
            self.save()
        self.interrupt.check()

    def draw(self, step: int) -> list[Trajectory]:
        """This rank's conversations of a step, their media read."""
        share = self.config.batch_size // self.world.size
        # Numbered over the run and over ranks, so that no two conversations are ever taken for one group.
        first, size = (step - 1) * self.config.batch_size + self.world.rank, self.world.size
        return [demonstration(p, first + place * size) for place, p in enumerate(self.prompts.draw(share))]

    def learn(self, drawn: Sequence[Trajectory]) -> Metrics:
        """One update."""
        (metrics,) = optimize(
            self.model,
            drawn,
            self.loss,
            config=self.config.update,
            averaging=Averaging(self.config.average, self.config.max_tokens),
            world=self.world,
            device=self.device,
            blank=self.blank,
            seed=0,  # decides which answers meet in which of several updates
        )
        return metrics

    @cached_property
    def blank(self) -> Trajectory:
        """What this rank computes while others still have conversations to compute."""
        return dummy_answer(self.processor.blank())

    def loss(self, batch: Batch) -> Terms:
        """-log p of each token the assistant said, (T,), under the present weights at temperature 1."""
        found = self.model.compute(
            partial(
                logprobs,
                temperature=1.0,
                max_logits=self.config.update.logits_per_chunk,
                exact_attention=self.config.model.attention == "separate",
            ),
            batch,
        )
        return negative_log_likelihood(found.values, batch, found.entropy)

    def describe(self, drawn: Sequence[Trajectory], seconds: float) -> Metrics:
        """What the conversations of a step are made of, over all ranks."""
        learned = sum(sum(t.mask) for t in drawn)
        cut = sum(t.finish == "length" for t in drawn)
        local = [len(drawn), sum(len(t) for t in drawn), learned, cut, batch_tokens(drawn)]
        count, length, learned, cut, read = self.world.sum(torch.tensor(local, dtype=torch.float64)).tolist()
        return {
            "epoch": sum(self.prompts.drawn) / sum(len(prompts) for prompts in self.prompts.sources),
            "length/mean": length / count,
            "length/max": self.world.max(max(float(len(t)) for t in drawn)),
            "length/truncated_fraction": cut / count,
            "counts/tokens_learned": learned,
            "train/tokens_per_second": read / max(seconds, 1e-9),
        }

    def examine(self) -> None:
        """The held-out loss, if it is asked for after the steps done so far and not known yet."""
        label = examination(self.config.evaluate, self.done, self.steps)
        if label is None or label in self.losses or not self.held_out:
            return
        self.progress.phase("evaluate")
        with self.memory_plan(Phase.SCORE):
            losses = {eval_set.task: self.held_out_loss(eval_set.prompts) for eval_set in self.held_out}
        self.memory_plan.reset_seconds()
        total = sum(eval_set.weight for eval_set in self.held_out)
        losses["mean"] = sum(losses[eval_set.task] * eval_set.weight for eval_set in self.held_out) / total
        self.losses[label] = losses
        self._position["losses"] = dict(self.losses)
        self._log({f"held_out_nll/{name}": value for name, value in losses.items()})
        self.progress.note(f"held-out loss ({label}): {losses['mean']:.4f} nats per token")

    @torch.no_grad()
    def held_out_loss(self, prompts: Sequence[Prompt]) -> float:
        """Mean of -log p over all tokens the assistant said in these conversations, nats."""
        mine = prompts[self.world.rank :: self.world.size]
        update, sums = self.config.update, torch.zeros(2, dtype=torch.float64)
        for start in range(0, int(self.world.max(len(mine))), OPEN_AT_ONCE):
            opened = [
                o for p in mine[start : start + OPEN_AT_ONCE] if (o := self.prompts.open(p)) is not None
            ]
            answers = [demonstration(p, place) for place, p in enumerate(opened)]
            planned = plan(answers, update.tokens_per_micro_batch, share_prompts=update.share_prompts)
            for _, batch, counts in rounds(
                planned, self.blank, self.world, share_prompts=update.share_prompts, device=self.device
            ):
                losses = self.loss(batch).loss.double() * batch.mask
                if counts:
                    sums += torch.stack([losses.sum(), batch.mask.sum().double()]).cpu()
                if self.world.size == 1:
                    self.interrupt.raise_if_stopped()
        loss, tokens = self.world.sum(sums).tolist()
        return loss / max(tokens, 1.0)

    def save(self) -> None:
        """Everything needed to go on from the last whole step."""
        self.progress.phase("save")
        STATUS.set_phase("save")
        state = {
            **self._position,
            "numbers": self.model.scalar_state(),
            "generators": self.world.gather(self._position["generators"]),
        }
        self.checkpoints.save(self._position["done"], state, {"model": self.model.tensor_state()})

    def save_model(self) -> None:
        """The Hugging Face folder of the run."""
        write_model(self.model, self.processor, self.run / "model", self.world)

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what `save` wrote."""
        self.model.load(state["models"]["model"], state["numbers"])
        self.prompts.load(state["prompts"])
        if len(state["generators"]) == self.world.size:
            restore_generators(state["generators"][self.world.rank])
        self.done, self.losses = state["done"], dict(state["losses"])
        if self.done < self.steps:  # a finished run that is to go on
            self.losses.pop("after", None)
        self.earlier_seconds = state["seconds"]

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, loading and held-out losses included, over all resumes."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def _snapshot(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "prompts": self.prompts.state(),
            "generators": generator_states(),
            "losses": dict(self.losses),
            "seconds": self.seconds,
        }

    def _log(self, metrics: Metrics) -> None:
        if self.logger is not None:
            with explained(self.run):
                self.logger.log(self.done, metrics)
