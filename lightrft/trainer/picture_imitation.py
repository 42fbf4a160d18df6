"""Supervised fine-tuning of diffusion pipelines as an objective: say which noise is in given pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightrft.datasets.sides import Shown
from lightrft.engines.sampling import stream, uniforms
from lightrft.models.given_pictures import GivenPictures
from lightrft.strategy.base import Trainable
from lightrft.trainer.batching import split
from lightrft.trainer.given_pictures import drawn_noise, looked_at
from lightrft.trainer.run import Evaluation, Metrics
from lightrft.trainer.sft import Imitation
from lightrft.types import Batch, Prompt, Terms, Trajectory


@dataclass(frozen=True)
class PictureImitation(Imitation):
    """The objective of `lightrft sft` where the model draws: an entry of a response is a level of noise at which it is looked at.

    The loss is the mean squared error of what the network predicts: flow matching, or what diffusion models are trained with.
    """

    given: GivenPictures = field(kw_only=True)

    def responses(self, prompt: Prompt, group: int) -> list[Trajectory]:
        """The picture with noise in it, without its text where pictures.text_dropout says so. What is drawn depends on the seed and the number of
        the group alone."""
        shown: Shown = prompt.target
        options, seed = self.config.pictures, self.config.seed
        places, noise = drawn_noise(self.given, seed, group, options.levels, options.density)
        chance = uniforms(torch.tensor([stream(seed, group, 1)]), torch.zeros(1, dtype=torch.int64))
        if not shown.held_out and float(chance) < options.text_dropout:
            prompt = self.given.processor.untold(prompt)
        return [looked_at(prompt, group, places, self.given.noised(shown.medium, noise, places))]

    def loss(self, model: Trainable, batch: Batch) -> Terms:
        """The mean squared error at each level of noise, (T,)."""
        found = torch.where(batch.mask, model.compute(self.given.errors, batch), 0.0)
        return Terms(found, {"error": found.detach()})

    def describe(self, drawn: Sequence[Trajectory]) -> Metrics:  # noqa: ARG002  # as the others
        """Nothing: there are no tokens to count."""
        return {}

    def tell(self, answers: Sequence[Trajectory], found: Tensor) -> None:
        """Part `error`, the mean over the levels of noise."""
        for t, errors in zip(answers, split(found, answers), strict=True):
            t.parts = {"error": float(errors.double().mean())}

    def evaluation(self, label: str, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> Evaluation:
        """The held-out error by task: the mean over all its pictures and their levels of noise."""
        found = super().evaluation(label, sums, weights)
        shown = f"held-out error ({label}): {found.values['mean']:.4f}, mean of squares"
        return Evaluation("held_out_error", found.values, shown)
