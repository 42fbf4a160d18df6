"""Gradient steps over packed batches with any loss. The only place with a backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lightrft.algorithms.averaging import denominators, token_weights
from lightrft.config import UpdateConfig
from lightrft.parallel.world import World
from lightrft.strategy.base import Trainable
from lightrft.trainer.batching import minibatches, pack, plan, rounds
from lightrft.trainer.metrics import Layout, TokenMeans
from lightrft.types import Batch, Terms, Trajectory
from lightrft.utils.seeding import derive_seed

Loss = Callable[[Batch], Terms]


@dataclass(frozen=True)
class Averaging:
    """How tokens are averaged, see algorithms/averaging.py."""

    by: Literal["token", "sequence", "fixed"]
    max_tokens: int


def optimize(
    model: Trainable,
    trajectories: Sequence[Trajectory],
    loss: Loss,
    *,
    config: UpdateConfig,
    averaging: Averaging,
    world: World,
    device: torch.device,
    seed: int,
    blank: Trajectory | None = None,
    first: int = 0,
    before_update: Callable[[int, float], None] = lambda index, norm: None,
) -> Iterator[dict[str, float]]:
    """`config.epochs` passes of `config.num_minibatches` updates each; yields the metrics of every update.

    Which answers meet in which update depends on `seed` alone. `blank` is computed by ranks that have fewer batches than
    others, so that all call for the same weights equally often; nothing is learned from it, and one process needs none. `first` skips updates before that index (`lightrft
    replay`). `before_update(index, gradient norm)` is called with the gradient ready and the weights not yet changed.
    """
    for epoch in range(config.epochs):
        parts = minibatches(trajectories, config.num_minibatches, seed=derive_seed(seed, epoch), world=world)
        for place, part in enumerate(parts):
            index = epoch * len(parts) + place
            if index >= first:
                yield _update(
                    model, part, loss, config, averaging, world, device, blank, index, before_update
                )


def _update(
    model: Trainable,
    part: Sequence[Trajectory],
    loss: Loss,
    config: UpdateConfig,
    averaging: Averaging,
    world: World,
    device: torch.device,
    blank: Trajectory | None,
    index: int,
    before_update: Callable[[int, float], None],
) -> dict[str, float]:
    whole = pack(part, inputs=False)
    local = denominators(whole.mask, whole.segments, whole.num_sequences)
    tokens, sequences = (int(x) for x in world.sum(torch.tensor(local)))
    means, total = TokenMeans(), 0.0
    layout = Layout()
    planned = plan(part, config.tokens_per_micro_batch, share_prompts=config.share_prompts)

    def weigh(batch: Batch) -> None:
        batch.weights = token_weights(batch, averaging.by, averaging.max_tokens, tokens, sequences)

    share_prompts = config.share_prompts
    for _, batch, counts in rounds(
        planned, blank, world, share_prompts=share_prompts, device=device, prepare=weigh
    ):
        terms = loss(batch)
        weighted = (batch.weights * terms.loss).sum()
        model.backward(weighted)
        if counts:
            layout.add(batch)
            total += float(weighted.detach())
            means.add(terms.metrics, batch.mask)
    norm = model.gradient_norm()
    total = float(world.sum(torch.tensor(total, dtype=torch.float64)))
    if not math.isfinite(total):
        norm = math.nan
    before_update(index, norm)
    rate = model.learning_rate()
    updated = model.step(norm)
    bad = {} if updated else {"counts/skipped_updates": 1.0}
    return {
        "loss": total,
        "grad_norm": norm,
        "learning_rate": rate,
        **means.result(world),
        **layout.result(config.tokens_per_micro_batch, world),
        **bad,
    }
