"""Gradient steps over packed batches with any loss. The only place with a backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lightrft.algorithms.averaging import Average, denominators, learned_groups, token_weights
from lightrft.models.operations import operations_of
from lightrft.strategy.base import Trainable
from lightrft.trainer.batching import Batching, owners_of, pack, rows_of, split
from lightrft.trainer.division import Divided, divide
from lightrft.trainer.metrics import Layout, TokenMeans
from lightrft.trainer.skipping import Idle, worth_reading
from lightrft.types import Batch, Terms, Trajectory

Loss = Callable[[Batch], Terms]


@dataclass(frozen=True)
class Averaging:
    """How tokens are averaged, see algorithms/averaging.py."""

    by: Average
    max_tokens: int


def optimize(
    model: Trainable,
    updates: Iterable[tuple[int, list[Trajectory]]],
    loss: Loss,
    *,
    averaging: Averaging,
    batching: Batching,
    before_update: Callable[[int, float | None], None] = lambda _index, _norm: None,
    keep_tokens: bool = False,
    idle: Idle | None = None,
) -> Iterator[dict[str, float]]:
    """One optimizer update for each of `updates` (see Batching.updates); yields the metrics of each. Called by all ranks.

    `before_update(index, gradient norm)` is called with the gradient ready and the weights not yet changed; without a norm where a scaled
    loss has overflowed.
    `keep_tokens`: what the loss tells of each token (Terms.tokens) becomes `Trajectory.learned`.
    `idle`: whether a response is known to have no gradient; it counts in every denominator, but is not read (trainer/skipping.py).
    """
    operations = operations_of(model.module)
    for index, answers in updates:
        means, layout, local_loss = _accumulate(
            model, answers, loss, averaging, batching, keep_tokens=keep_tokens, idle=idle
        )
        norm = model.gradient_norm()
        total = float(batching.world.sum(local_loss.cpu()))
        if not math.isfinite(total):
            norm = math.nan  # a loss that is no number makes a bad update, whatever its gradient
        rate, scaling = model.learning_rate(), model.scaling
        scaled = {} if scaling is None else {"loss_scale": scaling.value}
        if scaling is not None:
            scaling.finite_loss = math.isfinite(total)
        overflows = scaling is not None and scaling.explains and not math.isfinite(norm)
        before_update(index, None if overflows else norm)
        updated = model.step(norm)
        bad = {} if updated else {"counts/loss_overflows" if overflows else "counts/skipped_updates": 1.0}
        yield {
            "loss": total,
            **({} if overflows else {"grad_norm": norm}),
            "learning_rate": rate,
            **means.result(batching.world),
            **layout.result(batching.config.tokens_per_micro_batch, batching.world, operations),
            **scaled,
            **bad,
        }


def _accumulate(
    model: Trainable,
    answers: Sequence[Trajectory],
    loss: Loss,
    averaging: Averaging,
    batching: Batching,
    *,
    keep_tokens: bool,
    idle: Idle | None,
) -> tuple[TokenMeans, Layout, torch.Tensor]:
    """Adds the gradient of one update; gives what its metrics are made of, and this rank's part of the loss."""
    rows, most = rows_of(answers), batching.config.tokens_per_micro_batch
    whole, owners = pack(rows, inputs=False), owners_of(answers)
    read = rows if idle is None else worth_reading(rows, idle, batching.world)
    # A response with forks is one sequence: it weighs no more than others for having been asked in several rows.
    local = denominators(whole.mask, owners[whole.segments], len(answers))
    counted = [*local, learned_groups(whole), _unread(answers, read)]
    tokens, sequences, groups, skipped = (int(x) for x in batching.world.sum(torch.tensor(counted)))
    parts = groups if averaging.by == "group" else sequences
    whole.weights = token_weights(whole, averaging.by, averaging.max_tokens, tokens, parts, owners)
    divided = divide(read, most) if batching.entrywise else Divided.none(read)
    own = divided.shares(_of_those(read, rows, whole.weights))
    means, layout = TokenMeans(), Layout(skipped=None if idle is None else skipped)
    total = torch.zeros((), dtype=torch.float64, device=batching.device)

    def weigh(part: Sequence[Trajectory], batch: Batch) -> None:
        batch.weights = torch.cat([own.get(id(t), torch.zeros(len(t))) for t in part])  # a blank one has none

    told: list[tuple[Sequence[Trajectory], dict[str, torch.Tensor]]] = []
    for part, batch, counts in batching.rounds(divided.pieces, prepare=weigh):
        terms = loss(batch)
        weighted = (batch.weights * terms.loss).sum()
        model.backward(weighted if terms.auxiliary is None else weighted + terms.auxiliary)
        if counts:
            layout.add(batch)
            total += weighted.detach()
            means.add(terms.metrics, batch.mask)
            means.add_ratios(terms.ratios)
            if keep_tokens:
                told.append((part, terms.tokens))
    for told_of, columns in told:  # after all of them are queued, since a device is waited for here
        for name, column in columns.items():
            for t, values in zip(told_of, split(column, told_of), strict=True):
                t.learned[name] = values
    if told:
        divided.join()
    if keep_tokens:  # what a loss tells of all tokens, its weights, is known of those that it did not see
        _tell_weights(rows, read, whole.weights)
    return means, layout, total


def _unread(answers: Sequence[Trajectory], read: Sequence[Trajectory]) -> int:
    """How many responses have tokens, of which none is read."""
    seen = {id(t) for t in read}
    return sum(1 for t in answers if len(t) and not any(id(row) in seen for row in rows_of([t])))


def _tell_weights(answers: Sequence[Trajectory], read: Sequence[Trajectory], weights: torch.Tensor) -> None:
    """Gives each of the responses that were not read its part of the weights (T,) of all."""
    seen = {id(t) for t in read}
    for t, own in zip(answers, split(weights, answers), strict=True):
        if id(t) not in seen:
            t.learned["weight"] = own


def _of_those(some: Sequence[Trajectory], among: Sequence[Trajectory], column: torch.Tensor) -> torch.Tensor:
    """The part of a column (T,) over the responses `among` that is of `some` of them, in their order."""
    parts = {id(t): own for t, own in zip(among, column.split([len(t) for t in among]), strict=True)}
    return torch.cat([column[:0], *(parts[id(t)] for t in some)])
