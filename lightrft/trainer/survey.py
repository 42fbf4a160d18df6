"""One look at all responses of an update before its gradient, for losses that choose tokens by a statistic of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from lightrft.trainer.batching import Batching, pack, rows_of, split, unpack
from lightrft.types import Batch, Trajectory

Update = tuple[int, list[Trajectory]]


def surveyed(
    updates: Iterable[Update],
    log_probs: Callable[[Batch], Tensor],
    mark: Callable[[Tensor, Batch, Callable[[Tensor], Tensor]], Tensor],
    batching: Batching,
) -> Iterator[Update]:
    """Updates as they are given, whose responses have the column `marks` when they come; called by all ranks.

    `log_probs` are those (T,) of a packed batch under the weights as they are, so an update must be made before the next is asked for.
    `mark` finds the marks (T,) from them, a batch of all responses of this rank, and what sums over ranks.
    """
    for index, answers in updates:
        rows = rows_of(answers)
        present = _present(rows, log_probs, batching)
        whole = pack(rows, inputs=False)
        if not answers:  # of this rank
            whole.advantages = torch.zeros(0)
        unpack(mark(present, whole, batching.world.sum), rows, "marks")
        yield index, answers
        for t in rows:  # of these weights, and of no use to others
            t.columns.pop("marks", None)


@torch.no_grad()
def _present(answers: list[Trajectory], log_probs: Callable[[Batch], Tensor], batching: Batching) -> Tensor:
    """(T,) log-probs of these responses, in their order."""
    found: dict[int, Tensor] = {}
    for part, batch, counts in batching.rounds(answers):
        values = log_probs(batch)
        if counts:
            found |= {id(t): own for t, own in zip(part, split(values, part), strict=True)}
    return torch.cat([torch.zeros(0), *(found[id(t)] for t in answers if len(t))])
