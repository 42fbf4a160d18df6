"""Given pictures as responses of a trainer: which noise enters one, and the entries that a network is asked about."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightrft.engines.denoise import normals
from lightrft.engines.sampling import stream, uniforms
from lightrft.models.given_pictures import GivenPictures
from lightrft.types import Prompt, Trajectory

DENSITIES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u,
    "logit_normal": lambda u: torch.sigmoid(torch.special.ndtri(u)),
}
"""pictures.density -> even numbers in (0, 1) -> places in the scheduler's levels, as shares of all."""


def drawn_noise(
    given: GivenPictures, seed: int, group: int, levels: int, density: str
) -> tuple[Tensor, Tensor]:
    """(K,) int64 levels of noise and (K, ...) the noise itself. Both depend on the seed and the number of the group alone: not on the rank, nor
    on what else is learned from."""
    key = torch.tensor([stream(seed, group, 0)])
    drawn = DENSITIES[density](uniforms(key.expand(levels), torch.arange(levels)))
    places = (drawn * given.num_levels).long().clamp(max=given.num_levels - 1)
    return places, torch.cat([normals(key, 1 + k, given.processor.shape) for k in range(levels)])


def looked_at(prompt: Prompt, group: int, places: Tensor, states: Tensor) -> Trajectory:
    """A picture as a response: an entry for each level `places` (K,), `states` (K, 2, ...) as GivenPictures.noised has them."""
    count = len(places)
    return Trajectory(
        prompt=prompt,
        group=group,
        token_ids=places.tolist(),
        mask=[True] * count,
        behavior=[0.0] * count,
        finish="stop",
        states=states,
    )
