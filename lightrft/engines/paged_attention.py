"""The attention of new tokens over the pages of a cache.

The newest tokens of all siblings meet a shared page in one matrix product. What a response sees in its pages is joined exactly: if
page j gives o_j = softmax(s_j) v_j for scores s_j, then out = sum_j o_j exp(l_j - l), l_j = logsumexp(s_j), l = logsumexp(l_j).

Letters: A responses, each with one new token; U pages of a pool; C tokens of a page; W responses that read one page
(1, or the most siblings); J pages that one response reads; Hq and Hkv heads, G = Hq / Hkv; D size of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from lightrft.engines.paged_kernel import KernelAttention
from lightrft.engines.paged_suffix import Extending, Suffix
from lightrft.engines.pages import Pool, Stretch
from lightrft.models.attention import Layout, SharedPrompts, accumulation_type

_HIDDEN = -1e30
"""Added to a score that must not count. Finite, so that a page hidden as a whole does not turn into NaN."""


class Decoding:
    """The newest token of each running answer: written to its pages, and seeing what the answer sees."""

    def __init__(self, shared: Reading, own: Reading, newest: Sequence[Tensor]) -> None:
        """`newest`: page and offset of each new token in the answers' own pool."""
        self._shared, self._own, self._newest = shared, own, newest

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Writes the newest keys and values and attends over pages; shapes as in models/attention.py: Layout."""
        layer = module.layer_idx
        k, v = key[0].transpose(0, 1), value[0].transpose(0, 1)
        self._own.pool.write(layer, self._newest, k, v, scaling)
        return self._decode(layer, query[0].transpose(0, 1), k.shape[1], sliding_window)

    def _decode(self, layer: int, query: Tensor, key_heads: int, window: int | None) -> Tensor:
        """(1, A, Hq, D) from query (A, Hq, D)."""
        q = query.to(accumulation_type(query)).unflatten(1, (key_heads, -1))
        (shared_total, shared), (own_total, own) = (
            r.attend(layer, q, window) for r in (self._shared, self._own)
        )
        shares = torch.softmax(torch.cat([shared_total, own_total], 1), 1).unsqueeze(-1).unbind(1)
        outs = shared.unbind(1) + own.unbind(1)
        out = outs[0] * shares[0]
        for o, share in zip(outs[1:], shares[1:], strict=True):
            out = out.addcmul_(o, share)
        return out.to(query.dtype).flatten(1, 2).unsqueeze(0)


class Step:
    """The layout of one pass: the newest token of every running answer, followed by whole new prompts and the ends of others.

    `running` holds (prompt, own tokens) of each answer, the newest included; siblings hold the same prompt object.
    """

    def __init__(
        self,
        running: Sequence[tuple[Stretch, Stretch]],
        fresh: Sequence[Stretch],
        device: torch.device,
        both_ways: tuple[tuple[int, int], ...] = (),
        suffixes: Sequence[Suffix] = (),
    ):
        """`both_ways`: token ranges among those of the new prompts whose tokens see each other, later ones too."""
        self._count, self._whole = len(running), sum(p.length for p in fresh)
        self._running = _decoding(running, device) if running else None
        if fresh:
            places = [place for p in fresh for place in p.places(p.length)]
            self._places = torch.tensor(places, device=device).unbind(1)
            ends = accumulate((p.length for p in fresh), initial=0)
            self._prefill = SharedPrompts(tuple((span, ()) for span in pairwise(ends)), both_ways=both_ways)
        self._fresh = fresh[0].pool if fresh else None
        self._extending = _extending(suffixes, device) if suffixes else None

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Attention of the kinds of tokens, each by its own layout; shapes as in models/attention.py: Layout."""
        count, layer, out = self._count, module.layer_idx, []
        end = count + self._whole
        if self._extending is not None:
            q, k, v = query[:, :, end:], key[:, :, end:], value[:, :, end:]
            out.append(self._extending.attend(module, q, k, v, scaling, sliding_window))
        if self._fresh is not None:
            q, k, v = query[:, :, count:end], key[:, :, count:end], value[:, :, count:end]
            self._fresh.write(layer, self._places, k[0].transpose(0, 1), v[0].transpose(0, 1), scaling)
            out.append(self._prefill.attend(module, q, k, v, scaling, sliding_window))
        if self._running is not None:
            q, k, v = query[:, :, :count], key[:, :, :count], value[:, :, :count]
            out.append(self._running.attend(module, q, k, v, scaling, sliding_window))
        return out[0] if len(out) == 1 else torch.cat(out[::-1], 1)


def _decoding(running: Sequence[tuple[Stretch, Stretch]], device: torch.device) -> Layout:
    """The newest token of each, by what reads the pages that they lie in."""
    if running[0][1].pool.for_kernel:
        return KernelAttention.of_newest(running, device)
    last = torch.tensor([own.end - 1 for _, own in running], device=device)
    shared, own = (Reading.of(table([pair[i] for pair in running]), last) for i in (0, 1))
    newest = [stretch.newest for _, stretch in running]
    return Decoding(shared, own, torch.tensor(newest, device=device).unbind(1))


def _extending(suffixes: Sequence[Suffix], device: torch.device) -> Layout:
    if suffixes[0].own.pool.for_kernel:
        return KernelAttention.of_ends([(s.read, s.own, s.count) for s in suffixes], device)
    return Extending(suffixes, device)


@dataclass(frozen=True)
class Table:
    """Pages of a pool and the answers that read them, as lists."""

    pool: Pool
    readers: list[list[int]]
    """(U, W) answers; where fewer read a page, one of them stands there again."""
    filled: list[int]
    """(U,) tokens of each page that count."""
    starts: list[int]
    """(U,) position of its first token."""
    places: list[list[tuple[int, int, bool]]]
    """(A, J, 3) page, place among its readers, and whether it is absent."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """U, W and J."""
        return len(self.readers), len(self.readers[0]), len(self.places[0])


def table(stretches: Sequence[Stretch]) -> Table:
    """`stretches[a]` is read by answer a."""
    readers: dict[Stretch, list[int]] = {}
    for answer, stretch in enumerate(stretches):
        readers.setdefault(stretch, []).append(answer)
    pool = stretches[0].pool
    width, depth = max(map(len, readers.values())), max(len(s.pages) for s in readers)
    rows, filled, starts = [[0] * width] * len(pool), [0] * len(pool), [0] * len(pool)
    places: list[list[tuple[int, int, bool]]] = [[] for _ in stretches]
    for stretch, answers in readers.items():
        row = answers + answers[:1] * (width - len(answers))
        for i, page in enumerate(stretch.pages):
            rows[page.index], starts[page.index] = row, stretch.start + i * pool.size
            filled[page.index] = stretch.length - i * pool.size
        absent = [(0, 0, True)] * (depth - len(stretch.pages))
        for slot, answer in enumerate(answers):
            places[answer] = [(page.index, slot, False) for page in stretch.pages] + absent
    return Table(pool, rows, filled, starts, places)


class Reading:
    """Pages of a pool, the answers that read them and what of each page counts, as tensors made once per step."""

    def __init__(
        self, pool: Pool, readers: Tensor, places: Tensor, filled: Tensor, starts: Tensor, last: Tensor,
        *, is_ragged: bool, reach: int | None,
    ) -> None:  # fmt: skip
        """Arguments as in Table; answer a's newest token has position `last[a]`, and none has `reach` or more, if that is known."""
        self.pool, self._readers, self._places = pool, readers, places
        self._filled, self._starts, self._last = filled, starts, last
        self._is_ragged, self._reach = is_ragged, reach
        self._masks: dict[int | None, Tensor] = {}
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, found: Table, last: Tensor) -> Reading:
        """From the lists."""
        readers, places, filled, starts = (
            torch.tensor(x, device=last.device)
            for x in (found.readers, found.places, found.filled, found.starts)
        )
        ragged = any(places[-1][2] for places in found.places)
        reach = int(last.max()) + 1
        return cls(found.pool, readers, places, filled, starts, last, is_ragged=ragged, reach=reach)

    def attend(self, layer: int, query: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """l (A, J, Hkv, G) and o (A, J, Hkv, G, D) of every page each answer reads, from query (A, Hkv, G, D)."""
        keys, values = (t.flatten(0, 1) for t in self.pool.read(layer, len(self._readers)))  # (U Hkv, C, D)
        answers, heads, group, size = query.shape
        asking, answering = self._index(heads)
        q = query.reshape(answers * heads, -1).index_select(0, asking)
        scores = torch.bmm(q.view(len(keys), -1, size), keys.transpose(1, 2))  # (U Hkv, W G, C)
        scores.unflatten(0, (-1, heads)).unflatten(2, (-1, group)).add_(self._mask(window))
        weights = torch.softmax(scores, -1)
        total = scores.amax(-1).sub_(weights.amax(-1).log_())  # the largest weight is exp(largest score - l)
        out = torch.bmm(weights.to(values.dtype), values)
        total = total.view(-1, group).index_select(0, answering).view(answers, -1, heads, group)
        out = out.view(-1, group * size).index_select(0, answering).view(answers, -1, heads, group, size)
        if self._is_ragged:
            total.masked_fill_(self._places[:, :, 2].bool()[..., None, None], _HIDDEN)
        return total, out

    def _index(self, heads: int) -> tuple[Tensor, Tensor]:
        """Rows of (A Hkv) in the order of (U Hkv W), and rows of (U Hkv W) in the order of (A J Hkv)."""
        if heads not in self._rows:
            head = torch.arange(heads, device=self._readers.device)
            asking = self._readers[:, None] * heads + head[:, None]
            page, slot, _ = self._places.unbind(-1)
            answering = (page[..., None] * heads + head) * self._readers.shape[1] + slot[..., None]
            self._rows[heads] = asking.flatten(), answering.flatten()
        return self._rows[heads]

    def _mask(self, window: int | None) -> Tensor:
        """(U, 1, W or 1, 1, C), 0 where a token of a page counts for a reader, who sees window - 1 before its own."""
        if window is not None and self._reach is not None and window >= self._reach:
            window = None
        if window not in self._masks:
            column = torch.arange(self.pool.size, device=self._filled.device)
            seen = (column < self._filled[:, None])[:, None, None, None]
            if window is not None:
                oldest = self._last[self._readers][..., None] - window
                seen = seen & (self._starts[:, None, None] + column > oldest)[:, None, :, None]
            self._masks[window] = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, _HIDDEN)
        return self._masks[window]
