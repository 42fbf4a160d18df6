"""Keys and values of what has been read, in pages, and the attention that reads them.

A prompt's pages are shared by all its answers: the newest tokens of all siblings meet a page in one matrix product.
An answer's own tokens lie in pages of their own. What an answer sees in its pages is joined exactly: if page j gives
o_j = softmax(s_j) v_j for scores s_j, then out = sum_j o_j exp(l_j - l), l_j = logsumexp(s_j), l = logsumexp(l_j).

Letters: A answers, each with one new token; U pages of a pool; C tokens of a page; W answers that read one page
(1, or the most siblings); J pages that one answer reads; Hq and Hkv heads, G = Hq / Hkv; D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from lightrft.models.attention import SharedPrompts

_HIDDEN = -1e30
"""Added to a score that must not count. Finite, so that a page hidden as a whole does not turn into NaN."""


@dataclass(eq=False, slots=True)
class Page:
    """A place for C tokens; its index changes when the pool closes a gap."""

    index: int


PROMPT_PAGE, ANSWER_PAGE = 64, 32
"""Tokens of a page of the cache."""


class Pool:
    """Pages, the live ones always in front and without gaps; for each layer one tensor of keys and one of values.

    Keys are kept already multiplied by the attention's scaling, and in float32 even for a bfloat16 model, so that
    scores are never rounded to 8 bits.
    """

    def __init__(self, size: int) -> None:
        """`size`: tokens of a page."""
        self.size = size
        self._live: list[Page] = []
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.moves = 0
        """How often a layer got other tensors for more room; what holds on to the old ones reads and writes another's memory."""

    def __len__(self) -> int:
        return len(self._live)

    def take(self) -> Page:
        """A page; what it held before is still there, and finite."""
        page = Page(len(self._live))
        self._live.append(page)
        return page

    def give_back(self, pages: Iterable[Page]) -> None:
        """Frees pages; the last live ones move into the gaps."""
        freed = {page.index for page in pages}
        count = len(self._live) - len(freed)
        gaps = sorted(index for index in freed if index < count)
        movers = [page for page in self._live[count:] if page.index not in freed]
        source = [page.index for page in movers]
        for gap, page in zip(gaps, movers, strict=True):
            page.index = gap
            self._live[gap] = page
        del self._live[count:]
        if movers:
            for tensor in (t for pair in self._layers.values() for t in pair):
                tensor[gaps] = tensor[source]

    def write(self, layer: int, places: Sequence[Tensor], key: Tensor, value: Tensor, scaling: float) -> None:
        """Token i, key and value (N, Hkv, D), goes to `offset[i]` of page `page[i]`; `places` is (page, offset)."""
        keys, values = self._room(layer, key, value)
        page, offset = places
        keys[page, :, offset] = key.to(keys.dtype) * scaling
        values[page, :, offset] = value

    def read(self, layer: int, pages: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of the live pages, or of the first so many, (U, Hkv, C, D)."""
        keys, values = self._layers[layer]
        count = len(self) if pages is None else pages
        return keys[:count], values[:count]

    def reserve(self, pages: int) -> None:
        """Room for so many pages in the layers there are."""
        for layer in self._layers:
            self._grow(layer, pages)

    def _room(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self._layers:
            self._grow(layer, len(self))
        else:
            self._layers[layer] = (
                key.new_zeros(len(self), key.shape[1], self.size, key.shape[2], dtype=_accumulate(key)),
                value.new_zeros(len(self), value.shape[1], self.size, value.shape[2]),
            )
        return self._layers[layer]

    def _grow(self, layer: int, pages: int) -> None:
        keys, values = self._layers[layer]
        if keys.shape[0] < pages:
            size = max(pages, keys.shape[0] * 3 // 2)
            self._layers[layer] = _longer(keys, size), _longer(values, size)
            self.moves += 1

    @property
    def is_empty(self) -> bool:
        """Whether no layer has written to it yet."""
        return not self._layers

    def clear(self) -> None:
        """Frees all pages and keeps the memory."""
        self._live.clear()

    def release(self) -> None:
        """Frees all pages and the memory."""
        self.clear()
        self._layers.clear()

    def nbytes(self) -> int:
        """Bytes held."""
        return sum(t.numel() * t.element_size() for pair in self._layers.values() for t in pair)


@dataclass
class Cache:
    """The pools of an engine, a resident of the rollout phase.

    Pages are always read whole: measured on a CPU, batches of small products over parts of pages take twice as long.
    """

    prompts: Pool = field(default_factory=lambda: Pool(PROMPT_PAGE))
    answers: Pool = field(default_factory=lambda: Pool(ANSWER_PAGE))

    def onload(self) -> None:
        """Nothing: memory is taken as tokens come."""

    def offload(self) -> None:
        """Gives all memory back."""
        self.prompts.release()
        self.answers.release()

    def clear(self) -> None:
        """Forgets everything and keeps the memory for the next call."""
        self.prompts.clear()
        self.answers.clear()

    def nbytes(self) -> int:
        """Bytes held now."""
        return self.prompts.nbytes() + self.answers.nbytes()


@dataclass(eq=False, slots=True)
class Stretch:
    """Consecutive tokens of one sequence, and the pages that hold their keys and values."""

    pool: Pool
    start: int
    """Position of the first one."""
    length: int = 0
    pages: list[Page] = field(default_factory=list)

    def extend(self, count: int) -> None:
        """Makes room for `count` more tokens."""
        self.length += count
        while len(self.pages) * self.pool.size < self.length:
            self.pages.append(self.pool.take())

    @property
    def end(self) -> int:
        """Position after the last one."""
        return self.start + self.length

    @property
    def newest(self) -> tuple[int, int]:
        """Page and offset of the last one."""
        return self.pages[-1].index, (self.length - 1) % self.pool.size


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
        q = query.to(_accumulate(query)).unflatten(1, (key_heads, -1))
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
    """The layout of one pass: the newest token of every running answer, followed by whole new prompts.

    `running` holds (prompt, own tokens) of each answer, the newest included; siblings hold the same prompt object.
    """

    def __init__(
        self,
        running: Sequence[tuple[Stretch, Stretch]],
        fresh: Sequence[Stretch],
        device: torch.device,
        both_ways: tuple[tuple[int, int], ...] = (),
    ):
        """`both_ways`: token ranges among those of the new prompts whose tokens see each other, later ones too."""
        self._count = len(running)
        if running:
            last = torch.tensor([own.end - 1 for _, own in running], device=device)
            shared, own = (Reading.of(table([pair[i] for pair in running]), last) for i in (0, 1))
            newest = [stretch.newest for _, stretch in running]
            self._running = Decoding(shared, own, torch.tensor(newest, device=device).unbind(1))
        if fresh:
            size = fresh[0].pool.size
            places = [(p.pages[i // size].index, i % size) for p in fresh for i in range(p.length)]
            self._places = torch.tensor(places, device=device).unbind(1)
            ends = accumulate((p.length for p in fresh), initial=0)
            self._prefill = SharedPrompts(tuple((span, ()) for span in pairwise(ends)), both_ways=both_ways)
        self._fresh = fresh[0].pool if fresh else None

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """Attention of both kinds of tokens, each by its own layout; shapes as in models/attention.py: Layout."""
        count, layer, out = self._count, module.layer_idx, []
        if self._fresh is not None:
            q, k, v = query[:, :, count:], key[:, :, count:], value[:, :, count:]
            self._fresh.write(layer, self._places, k[0].transpose(0, 1), v[0].transpose(0, 1), scaling)
            out.append(self._prefill.attend(module, q, k, v, scaling, sliding_window))
        if count:
            q, k, v = query[:, :, :count], key[:, :, :count], value[:, :, :count]
            out.append(self._running.attend(module, q, k, v, scaling, sliding_window))
        return out[0] if len(out) == 1 else torch.cat(out[::-1], 1)


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
        """As in Table; answer a's newest token has position `last[a]`, and none has `reach` or more, if that is known."""
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


def _longer(tensor: Tensor, size: int) -> Tensor:
    out = tensor.new_zeros(size, *tensor.shape[1:])
    out[: len(tensor)] = tensor
    return out


def _accumulate(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
