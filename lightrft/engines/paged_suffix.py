"""The attention of new tokens behind a response that is in the cache: they see its prompt, it, and those before them.

Letters: N new tokens of all responses; S of one; T tokens that those see at most; Hq and Hkv heads, G = Hq / Hkv; D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightrft.engines.pages import Stretch
from lightrft.models.attention import accumulation_type

ROWS_AT_ONCE = 256
"""Tokens whose scores are in memory together."""


@dataclass(frozen=True, slots=True)
class Suffix:
    """The last `count` tokens of a response, which are read now, behind the prompt and what was read before."""

    read: Stretch
    own: Stretch
    count: int


class Extending:
    """Attention of several suffixes, one behind the other."""

    def __init__(self, suffixes: Sequence[Suffix], device: torch.device) -> None:
        self._suffixes, self._pool = suffixes, suffixes[0].own.pool
        places = [place for s in suffixes for place in s.own.places(s.count)]
        self._places = torch.tensor(places, device=device).unbind(1)
        self._pages = [
            [torch.tensor([page.index for page in part.pages], device=device) for part in (s.read, s.own)]
            for s in suffixes
        ]

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """(1, N, Hq, D) from query (1, Hq, N, D), key and value (1, Hkv, N, D), which are written to the cache."""
        layer = module.layer_idx
        k, v = key[0].transpose(0, 1), value[0].transpose(0, 1)
        self._pool.write(layer, self._places, k, v, scaling)
        out, start = [], 0
        for suffix, pages in zip(self._suffixes, self._pages, strict=True):
            q = query[0, :, start : start + suffix.count].to(accumulation_type(query))
            keys, values = (
                torch.cat(parts, 1) for parts in zip(*_gathered(layer, suffix, pages), strict=True)
            )
            out.append(_attended(q.unflatten(0, (len(keys), -1)), keys, values, sliding_window))
            start += suffix.count
        return torch.cat(out).to(query.dtype).unsqueeze(0)


def _gathered(layer: int, suffix: Suffix, pages: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (Hkv, tokens, D) of the prompt, and of the response."""
    found = []
    for part, index in zip((suffix.read, suffix.own), pages, strict=True):
        keys, values = (
            t[index].transpose(0, 1).flatten(1, 2)[:, : part.length] for t in part.pool.read(layer)
        )
        found.append((keys, values))
    return found


def _attended(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """(S, Hq, D) from query (Hkv, G, S, D): the last S of the T tokens, of which each sees those up to itself."""
    count, length = query.shape[2], keys.shape[1]
    column, out = torch.arange(length, device=keys.device), []
    for start in range(0, count, ROWS_AT_ONCE):
        rows = query[:, :, start : start + ROWS_AT_ONCE]
        place = length - count + start + torch.arange(rows.shape[2], device=keys.device)[:, None]
        hidden = column > place
        if window is not None:
            hidden = hidden | (column <= place - window)
        scores = torch.matmul(rows, keys.transpose(1, 2)[:, None]).masked_fill_(hidden, -torch.inf)
        weights = torch.softmax(scores, -1).to(values.dtype)
        out.append(torch.matmul(weights, values[:, None]).flatten(0, 1).transpose(0, 1))
    return torch.cat(out)
