"""Weights in messages of limited size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


def buckets(weights: Iterable[tuple[str, Tensor]], most_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Consecutive weights, as many as fit; a larger one alone. A bucket is dropped before the next is filled."""
    bucket: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > most_bytes:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = tensor
        size += tensor.nbytes
    if bucket:
        yield bucket
