"""Supervised fine-tuning of masked diffusion language models as an objective: say which tokens of given responses are masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from lightrft.algorithms.losses import negative_log_likelihood
from lightrft.datasets.conversations import demonstration
from lightrft.engines.sampling import stream
from lightrft.models.masked import canvas_logprobs
from lightrft.models.masking import Masking
from lightrft.strategy.base import Trainable
from lightrft.trainer.batching import split
from lightrft.trainer.sft import Imitation
from lightrft.types import Batch, Prompt, Terms, Trajectory


@dataclass(frozen=True)
class MaskedImitation(Imitation):
    """The objective of `lightrft sft` where the model reads both ways."""

    reading: Masking = field(kw_only=True)

    def responses(self, prompt: Prompt, group: int) -> list[Trajectory]:
        """What the assistant said, with its end token again to the size of the canvas; masks depend on the seed and the number of the group alone."""
        t = demonstration(prompt, group)
        # A response that was cut has no end token.
        more = max(0, self.config.masked.canvas - len(t)) if t.finish == "stop" else 0
        t.token_ids, t.mask = t.token_ids + t.token_ids[-1:] * more, t.mask + [True] * more
        t.behavior = [0.0] * len(t)
        t.stream = stream(self.config.seed, group, 0)
        width = self.reading.width(len(prompt.token_ids), len(t))
        t.prompt = replace(prompt, width=width)
        return [t]

    def tell(self, answers: Sequence[Trajectory], found: Tensor) -> None:
        """Part `nll`, the mean over the tokens the assistant said; of single tokens, most of which are seen, nothing is told."""
        for t, losses in zip(answers, split(found, answers), strict=True):
            t.parts = {"nll": float(losses[torch.tensor(t.mask)].double().mean())}

    def loss(self, model: Trainable, batch: Batch) -> Terms:
        """-log p of each masked token over the level of its masks, (T,), 0 of the others, under the present weights at temperature 1."""
        found = model.compute(
            partial(canvas_logprobs, temperature=1.0, max_logits=self.config.update.logits_per_chunk), batch
        )
        terms = negative_log_likelihood(found.values, batch, found.entropy)
        return Terms(terms.loss, {"nll": terms.metrics["nll"]})  # most tokens have no entropy: they are seen
