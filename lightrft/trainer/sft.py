"""Supervised fine-tuning as an objective: learn to say what the assistant said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightrft.algorithms.losses import negative_log_likelihood
from lightrft.config import SFTConfig
from lightrft.datasets.conversations import demonstration
from lightrft.models.logprobs import logprobs
from lightrft.strategy.base import Trainable
from lightrft.trainer.batching import split
from lightrft.trainer.optimize import Averaging
from lightrft.trainer.run import Evaluation, Metrics
from lightrft.types import Batch, Prompt, Terms, Trajectory


@dataclass(frozen=True)
class Imitation:
    """The objective of `lightrft sft`."""

    config: SFTConfig
    num_sums: int = 2
    """Sums of -log p and of tokens."""

    @property
    def averaging(self) -> Averaging:
        """How the settings say that tokens are averaged."""
        return Averaging(self.config.average, self.config.max_tokens)

    def responses(self, prompt: Prompt, group: int) -> list[Trajectory]:
        """What the assistant said."""
        return [demonstration(prompt, group)]

    def loss(self, model: Trainable, batch: Batch) -> Terms:
        """-log p of each token the assistant said, (T,), under the present weights at temperature 1."""
        found = model.compute(
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
        """How many tokens are learned."""
        return {"counts/tokens_learned": float(sum(sum(t.mask) for t in drawn))}

    def look(self, model: Trainable, batch: Batch) -> Tensor:
        """-log p of each token, (T,)."""
        return self.loss(model, batch).loss

    def tell(self, answers: Sequence[Trajectory], found: Tensor) -> None:
        """Part `nll`, the mean of -log p over the tokens the assistant said, and column `new`, log p of each token."""
        for t, losses in zip(answers, split(found, answers), strict=True):
            t.columns["new"] = -losses
            t.parts = {"nll": float(losses[torch.tensor(t.mask)].double().mean())}

    def examine(self, model: Trainable, batch: Batch) -> Tensor:
        """The sum of -log p over the tokens the assistant said, nats, and their number."""
        losses = self.loss(model, batch).loss.double() * batch.mask
        return torch.stack([losses.sum(), batch.mask.sum().double()]).cpu()

    def evaluation(self, label: str, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> Evaluation:
        """The held-out loss by task: the mean of -log p over all tokens the assistant said."""
        losses = {task: float(loss / max(tokens, 1.0)) for task, (loss, tokens) in _numbers(sums).items()}
        total = sum(weights.values())
        losses["mean"] = sum(losses[task] * weight for task, weight in weights.items()) / total
        shown = f"held-out loss ({label}): {losses['mean']:.4f} nats per token"
        return Evaluation("held_out_nll", losses, shown)


def _numbers(sums: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {task: found.tolist() for task, found in sums.items()}
