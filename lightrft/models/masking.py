"""Given responses as masked diffusion language models learn them: some tokens are masked at random, and the model says which they were.

A level t is drawn evenly from 0 to 1, each learned token is masked with probability t, and a masked one counts 1 / t: LLaDA (Nie et al. 2025,
https://arxiv.org/abs/2502.09992), eq. 5 and algorithm 2. The mean over levels and masks is a bound of -log p of the response, and the sum over
masks of k tokens of 1 / (k C(L, k)) times what they cost.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lightrft.models.canvases import Reading, View
from lightrft.types import Trajectory
from lightrft.utils.seeding import derive_seed

LEAST = 1e-3
"""The lowest level, as in LLaDA's code: 1 / t is at most a thousand."""


@dataclass(frozen=True)
class Masking(Reading):
    """How given responses are read: `draws` rows each, with masks from the response's own stream."""

    draws: int = 1

    def views(self, t: Trajectory) -> Iterator[View]:
        """What is read of a response; also where no token happens to be masked, so that all ranks read equally often."""
        wanted = t.mask if any(t.mask) else [True] * len(t)
        for number in range(self.draws):
            draw = random.Random(derive_seed(t.stream, "masks", number))
            level = LEAST + (1 - LEAST) * draw.random()
            hidden = [place for place, learned in enumerate(wanted) if draw.random() < level and learned]
            canvas = list(t.token_ids)
            for place in hidden:
                canvas[place] = self.mask
            if hidden or not number:
                yield View(canvas, hidden, share=1 / (level * self.draws))

    def width(self, prompt: int, size: int) -> int:
        """Positions read for each token of a response of `size` to a prompt of so many tokens, at most."""
        return -(-self.draws * (prompt + size) // max(1, size))
