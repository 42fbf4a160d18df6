"""Keys and values of what has been read, in pages, and the attention that reads them.

A prompt's pages are shared by all its answers: the newest tokens of all siblings meet a page in one matrix product.
An answer's own tokens lie in pages of their own. Attention over several pages is joined exactly: with scores s, each
page gives m = max s, z = sum exp(s - m) and o = sum exp(s - m) v, and with M = max m over the pages
out = sum exp(m - M) o / sum exp(m - M) z.

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

PAGE = 64
_HIDDEN = -1e30
"""Added to a score that must not count. Finite, so that a page hidden as a whole does not turn into NaN."""


@dataclass(eq=False, slots=True)
class Page:
    """A place for C tokens; its index changes when the pool closes a gap."""

    index: int


class Pool:
    """Pages, the live ones always in front and without gaps; for each layer one tensor of keys and one of values.

    Keys are float32 even for a bfloat16 model: scores are never rounded to 8 bits.
    """

    def __init__(self) -> None:
        self._live: list[Page] = []
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

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

    def write(self, layer: int, page: Tensor, offset: Tensor, key: Tensor, value: Tensor) -> None:
        """Token i, key and value (N, Hkv, D), goes to `offset[i]` of page `page[i]`."""
        keys, values = self._room(layer, key, value)
        keys[page, :, offset] = key.to(keys.dtype)
        values[page, :, offset] = value

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the live pages, (U, Hkv, C, D)."""
        keys, values = self._layers[layer]
        return keys[: len(self)], values[: len(self)]

    def _room(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        have = self._layers.get(layer)
        if have is not None and have[0].shape[0] >= len(self):
            return have
        size = len(self) if have is None else max(len(self), have[0].shape[0] * 3 // 2)
        keys = key.new_zeros(size, key.shape[1], PAGE, key.shape[2], dtype=_accumulate(key))
        values = value.new_zeros(size, value.shape[1], PAGE, value.shape[2])
        if have is not None:
            keys[: have[0].shape[0]], values[: have[0].shape[0]] = have
        self._layers[layer] = keys, values
        return keys, values

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
    """The pools of an engine, a resident of the rollout phase."""

    prompts: Pool = field(default_factory=Pool)
    answers: Pool = field(default_factory=Pool)

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
        while len(self.pages) * PAGE < self.length:
            self.pages.append(self.pool.take())

    @property
    def end(self) -> int:
        """Position after the last one."""
        return self.start + self.length


class Step:
    """The layout of one pass: the newest token of every running answer, followed by whole new prompts.

    `running` holds (prompt, own tokens) of each answer, the newest included; siblings hold the same prompt object.
    """

    def __init__(
        self, running: Sequence[tuple[Stretch, Stretch]], fresh: Sequence[Stretch], device: torch.device
    ):
        self._count = len(running)
        if running:
            last = torch.tensor([own.end - 1 for _, own in running], device=device)
            self._shared = _Reading([prompt for prompt, _ in running], last)
            self._own = _Reading([own for _, own in running], last)
            newest = [(own.pages[-1].index, (own.length - 1) % PAGE) for _, own in running]
            self._newest = torch.tensor(newest, device=device).unbind(1)
        if fresh:
            places = [(p.pages[i // PAGE].index, i % PAGE) for p in fresh for i in range(p.length)]
            self._places = torch.tensor(places, device=device).unbind(1)
            ends = accumulate((p.length for p in fresh), initial=0)
            self._prefill = SharedPrompts(tuple((span, ()) for span in pairwise(ends)))
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
        """See models.attention.Layout."""
        count, layer, out = self._count, module.layer_idx, []
        if self._fresh is not None:
            q, k, v = query[:, :, count:], key[:, :, count:], value[:, :, count:]
            self._fresh.write(layer, *self._places, k[0].transpose(0, 1), v[0].transpose(0, 1))
            out.append(self._prefill.attend(module, q, k, v, scaling, sliding_window))
        if count:
            k, v = key[0, :, :count].transpose(0, 1), value[0, :, :count].transpose(0, 1)
            self._own.pool.write(layer, *self._newest, k, v)
            out.append(self._decode(layer, query[0, :, :count].transpose(0, 1) * scaling, sliding_window))
        return out[0] if len(out) == 1 else torch.cat(out[::-1], 1)

    def _decode(self, layer: int, query: Tensor, window: int | None) -> Tensor:
        """(1, A, Hq, D) from query (A, Hq, D)."""
        heads = self._own.pool.read(layer)[0].shape[1]
        q = query.unflatten(1, (heads, -1))
        parts = [reading.attend(layer, q, window) for reading in (self._shared, self._own)]
        tops = torch.cat([top for top, _, _ in parts], 1)
        shares = torch.exp(tops - tops.amax(1, keepdim=True))  # (A, J, Hkv, G)
        total = (shares * torch.cat([total for _, total, _ in parts], 1)).sum(1)
        split = shares.split([top.shape[1] for top, _, _ in parts], 1)
        out = sum((s.unsqueeze(-1) * o).sum(1) for s, (_, _, o) in zip(split, parts, strict=True))
        return (out / total.unsqueeze(-1)).to(query.dtype).flatten(1, 2).unsqueeze(0)


class _Reading:
    """Which answers read which pages of a pool, and what of each page counts, as tensors made once per step."""

    def __init__(self, stretches: Sequence[Stretch], last: Tensor) -> None:
        """`stretches[a]` is read by answer a, whose newest token has position `last[a]`."""
        readers: dict[Stretch, list[int]] = {}
        for answer, stretch in enumerate(stretches):
            readers.setdefault(stretch, []).append(answer)
        self.pool = stretches[0].pool
        width, depth = max(map(len, readers.values())), max(len(s.pages) for s in readers)
        rows, filled, starts = [[0] * width] * len(self.pool), [0] * len(self.pool), [0] * len(self.pool)
        places: list[list[tuple[int, int, bool]]] = [[] for _ in stretches]
        for stretch, answers in readers.items():
            row = answers + answers[:1] * (width - len(answers))
            for i, page in enumerate(stretch.pages):
                rows[page.index], starts[page.index] = row, stretch.start + i * PAGE
                filled[page.index] = min(PAGE, stretch.length - i * PAGE)
            absent = [(0, 0, True)] * (depth - len(stretch.pages))
            for slot, answer in enumerate(answers):
                places[answer] = [(page.index, slot, False) for page in stretch.pages] + absent
        device = last.device
        self._readers = torch.tensor(rows, device=device)  # (U, W)
        self._pages, self._slots, absent_ = torch.tensor(places, device=device).unbind(-1)  # (A, J)
        self._absent = absent_.bool()[..., None, None] if any(p[-1][2] for p in places) else None
        self._crop = max(filled)
        self._starts, self._last = torch.tensor(starts, device=device), last
        self._column = torch.arange(self._crop, device=device)
        self._seen = (self._column < torch.tensor(filled, device=device)[:, None])[:, None, None, None]
        self._reach = int(last.max()) + 1
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """m (A, J, Hkv, G), z (A, J, Hkv, G) and o (A, J, Hkv, G, D) from query (A, Hkv, G, D), already scaled."""
        keys, values = (t[:, :, : self._crop].flatten(0, 1) for t in self.pool.read(layer))
        q = query.to(keys.dtype)[self._readers].transpose(1, 2)  # (U, Hkv, W, G, D)
        shape = q.shape[:4]
        scores = torch.bmm(q.flatten(0, 1).flatten(1, 2), keys.transpose(1, 2))
        scores.view(*shape, -1).add_(self._mask(window))
        top = scores.amax(-1, keepdim=True)
        weights = scores.sub_(top).exp_()
        out = torch.bmm(weights.to(values.dtype), values)
        m, z, o = (t.view(*shape, -1)[self._pages, :, self._slots] for t in (top, weights.sum(-1), out))
        m = m if self._absent is None else m.masked_fill(self._absent.unsqueeze(-1), _HIDDEN)
        return m.squeeze(-1), z.squeeze(-1), o

    def _mask(self, window: int | None) -> Tensor:
        """(U, 1, W or 1, 1, C): 0 where a page's token counts for a reader. A token sees itself and window - 1 more."""
        window = None if window is None or window >= self._reach else window
        if window not in self._masks:
            seen = self._seen
            if window is not None:
                position = self._starts[:, None] + self._column
                oldest = self._last[self._readers] - window
                seen = seen & (position[:, None] > oldest[..., None])[:, None, :, None]
            mask = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, _HIDDEN)
            self._masks[window] = mask
        return self._masks[window]


def _accumulate(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
