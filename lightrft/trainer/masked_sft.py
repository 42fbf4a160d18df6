"""Supervised fine-tuning of masked diffusion language models as an objective: say which tokens of given responses are masked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from lightrft.algorithms.losses import negative_log_likelihood
from lightrft.datasets.conversations import demonstration
from lightrft.engines.sampling import stream
from lightrft.models.masked import canvas_logprobs
from lightrft.models.masking import Masking
from lightrft.strategy.base import Trainable
from lightrft.trainer.sft import Imitation
from lightrft.types import Batch, Prompt, Terms, Trajectory


@dataclass(frozen=True)
class MaskedImitation(Imitation):
    """The objective of `lightrft sft` where the model reads both ways."""

    reading: Masking = field(kw_only=True)
    stop_ids: frozenset[int] = field(kw_only=True)

    def responses(self, prompt: Prompt, group: int) -> list[Trajectory]:
        """What the assistant said, on its canvas; masks depend on the seed and the number of the group alone."""
        t = demonstration(prompt, group)
        t.token_ids, t.mask = self._filled(t.token_ids, t.mask)
        t.behavior = [0.0] * len(t)
        t.stream = stream(self.config.seed, group, 0)
        width = self.reading.width(len(prompt.token_ids), len(t))
        t.prompt = replace(prompt, width=width)
        return [t]

    def _filled(self, tokens: list[int], mask: list[bool]) -> tuple[list[int], list[bool]]:
        """A response with end tokens behind it to the size of the canvas, which are learned; one that was cut has none."""
        ends = [token for token in tokens if token in self.stop_ids]
        more = max(0, self.config.masked.canvas - len(tokens)) if ends else 0
        return tokens + ends[-1:] * more, mask + [True] * more

    def loss(self, model: Trainable, batch: Batch) -> Terms:
        """-log p of each masked token over the level of its masks, (T,), 0 of the others, under the present weights at temperature 1."""
        found = model.compute(
            partial(canvas_logprobs, temperature=1.0, max_logits=self.config.update.logits_per_chunk), batch
        )
        terms = negative_log_likelihood(found.values, batch, found.entropy)
        return Terms(terms.loss, {"nll": terms.metrics["nll"]})  # most tokens have no entropy: they are seen
