"""Supervised fine-tuning: read conversations, learn to say what the assistant said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from lightrft.algorithms.losses import negative_log_likelihood
from lightrft.config import SFTConfig
from lightrft.datasets.conversations import demonstration
from lightrft.datasets.loader import PromptLoader
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.memory import MemoryPlan, Phase
from lightrft.trainer.balance import balanced
from lightrft.trainer.batching import Batching, batch_tokens
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.run import Evaluation, Journal, Metrics, Part, RankPart
from lightrft.types import Batch, Prompt, Terms, Trajectory
from lightrft.utils.interrupt import Interrupt

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
    """Draw conversations, learn, repeat. Every rank runs this same program on its own conversations (SPMD)."""

    config: SFTConfig
    world: World
    memory_plan: MemoryPlan
    batching: Batching
    model: Trainable
    prompts: PromptLoader
    """Prompts whose target is the response to learn (see datasets/conversations.py)."""
    held_out: Sequence[HeldOut]
    journal: Journal
    interrupt: Interrupt
    whole: bool = field(default=True, init=False)

    def train_step(self, step: int) -> tuple[Metrics, list[Trajectory]]:
        """One update. Its metrics and its conversations."""
        self.journal.progress.phase("train")
        drawn = self.draw(step)
        self.whole = False
        with self.memory_plan(Phase.TRAIN):
            metrics = self.learn(balanced(drawn, self.world))
        return metrics | self.describe(drawn), drawn

    def record(self, step: int, metrics: Metrics, trajectories: list[Trajectory]) -> None:  # noqa: ARG002  # as Trainer has it
        """The metrics of a step; its conversations are in the data."""
        self.journal.log(step, metrics)

    def draw(self, step: int) -> list[Trajectory]:
        """This rank's conversations of a step, their media read."""
        share = self.config.batch_size // self.world.size
        # Numbered over the run and over ranks, so that no two conversations are ever taken for one group.
        first, size = (step - 1) * self.config.batch_size + self.world.rank, self.world.size
        return [demonstration(p, first + place * size) for place, p in enumerate(self.prompts.draw(share))]

    def learn(self, drawn: Sequence[Trajectory]) -> Metrics:
        """One update."""
        # The seed decides which answers meet in which of several updates, and here is one.
        updates = self.batching.updates(drawn, seed=0)
        averaging = Averaging(self.config.average, self.config.max_tokens)
        (metrics,) = optimize(self.model, updates, self.loss, averaging=averaging, batching=self.batching)
        return metrics

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

    def describe(self, drawn: Sequence[Trajectory]) -> Metrics:
        """Describes the conversations of a step, over all ranks."""
        learned = sum(sum(t.mask) for t in drawn)
        cut = sum(t.finish == "length" for t in drawn)
        local = [len(drawn), sum(len(t) for t in drawn), learned, cut, batch_tokens(drawn)]
        count, length, learned, cut, read = self.world.sum(torch.tensor(local, dtype=torch.float64)).tolist()
        seconds = self.world.max(self.memory_plan.seconds[Phase.TRAIN])
        return {
            "epoch": sum(self.prompts.drawn) / sum(len(prompts) for prompts in self.prompts.sources),
            "length/mean": length / count,
            "length/max": self.world.max(max(float(len(t)) for t in drawn)),
            "length/truncated_fraction": cut / count,
            "counts/tokens_learned": learned,
            "train/tokens_per_second": read / max(seconds, 1e-9),
        }

    def evaluate(self, label: str) -> Evaluation:
        """The held-out loss by task."""
        with self.memory_plan(Phase.SCORE):
            losses = {one.task: self.held_out_loss(one.prompts) for one in self.held_out}
        total = sum(one.weight for one in self.held_out)
        losses["mean"] = sum(losses[one.task] * one.weight for one in self.held_out) / total
        shown = f"held-out loss ({label}): {losses['mean']:.4f} nats per token"
        return Evaluation("held_out_nll", losses, shown)

    @torch.no_grad()
    def held_out_loss(self, prompts: Sequence[Prompt]) -> float:
        """Mean of -log p over all tokens the assistant said in these conversations, nats."""
        mine = prompts[self.world.rank :: self.world.size]
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, int(self.world.max(len(mine))), OPEN_AT_ONCE):
            opened = [
                o for p in mine[start : start + OPEN_AT_ONCE] if (o := self.prompts.open(p)) is not None
            ]
            answers = [demonstration(p, place) for place, p in enumerate(opened)]
            for _, batch, counts in self.batching.rounds(answers):
                losses = self.loss(batch).loss.double() * batch.mask
                if counts:
                    sums += torch.stack([losses.sum(), batch.mask.sum().double()]).cpu()
                if self.world.size == 1:
                    self.interrupt.raise_if_stopped()
        loss, tokens = self.world.sum(sums).tolist()
        return float(loss / max(tokens, 1.0))

    @property
    def learners(self) -> Mapping[str, Trainable]:
        """The one model that learns, by its name in checkpoints."""
        return {"model": self.model}

    @property
    def followers(self) -> Mapping[str, Frozen]:
        """No model is frozen."""
        return {}

    @property
    def parts(self) -> Mapping[str, Part]:
        """The stream of conversations, which goes into checkpoints."""
        return {"prompts": self.prompts}

    @property
    def rank_parts(self) -> Mapping[str, RankPart]:
        """The frame keeps the random generators."""
        return {}
