"""Learning which of given pictures is better: noise is put into both sides of a pair alike, and the better one is to be told from it better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightrft.datasets.sides import Side
from lightrft.engines.denoise import normals
from lightrft.engines.sampling import stream, uniforms
from lightrft.models.picture_pairs import GivenPictures
from lightrft.strategy.base import Frozen, Trainable
from lightrft.trainer.policy_preferences import PolicyPreferences
from lightrft.types import Batch, Prompt, Trajectory


@dataclass
class PicturePreferences(PolicyPreferences):
    """The objective of `lightrft dpo` where the model draws: an entry of a response is a level of noise at which it is looked at."""

    given: GivenPictures = field(kw_only=True)

    @property
    def averages(self) -> bool:
        """A picture is worth the mean over its levels of noise."""
        return True

    @property
    def advice(self) -> str:
        """What may make the errors of equal models differ."""
        return (
            "they do not give the same errors. A network that drops units at random must not while it learns here; set model.dtype=float32 to see "
            "whether rounding is the cause."
        )

    def falling(self, by: float) -> str:
        """Says that the errors on the better pictures have grown: what a picture is worth is minus half of them."""
        return (
            "the network's errors on the better pictures are larger than the reference's, "
            f"by {2 * by:.2g} now (mean squares, added up over pictures.levels)"
        )

    def responses(self, prompt: Prompt, group: int) -> list[Trajectory]:
        """The pictures of a comparison, with the same noise at the same levels in each.

        Levels are drawn evenly from the scheduler's. They and the noise depend on the seed and the number of the group alone: not on the rank, nor
        on what else is learned from.
        """
        key = torch.tensor([stream(self.config.seed, group, 0)])
        count = self.config.pictures.levels
        drawn = uniforms(key.expand(count), torch.arange(count))
        places = (drawn * self.given.num_levels).long()
        noise = torch.cat([normals(key, 1 + k, self.given.processor.shape) for k in range(count)])
        sides: Sequence[Side] = prompt.target
        return [
            Trajectory(
                prompt=prompt,
                group=group,
                token_ids=places.tolist(),
                mask=[True] * count,
                behavior=[0.0] * count,
                finish="stop",
                parts=dict(side.grades),
                states=self.given.noised(side.medium, noise, places),
            )
            for side in sides
        ]

    def logprobs(self, model: Trainable | Frozen, batch: Batch) -> Tensor:
        """(T,): minus half the mean squared error at each level of noise."""
        return model.compute(self.given.logprobs, batch)
