"""Learning which of given pictures is better: noise is put into both sides of a pair alike, and the better one is to be told from it better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightrft.datasets.sides import Side
from lightrft.models.given_pictures import GivenPictures
from lightrft.strategy.base import Frozen, Trainable
from lightrft.trainer.given_pictures import drawn_noise, looked_at
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
        """The pictures of a comparison, with the same noise at the same levels in each; levels are drawn evenly from the scheduler's."""
        count = self.config.pictures.levels
        places, noise = drawn_noise(self.given, self.config.seed, group, count, "uniform")
        sides: Sequence[Side] = prompt.target
        found = []
        for side in sides:
            t = looked_at(prompt, group, places, self.given.noised(side.medium, noise, places))
            t.parts = dict(side.grades)
            found.append(t)
        return found

    def logprobs(self, model: Trainable | Frozen, batch: Batch) -> Tensor:
        """(T,): minus half the mean squared error at each level of noise."""
        return model.compute(self.given.logprobs, batch)
