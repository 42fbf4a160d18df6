"""Keys and values of what has been read, in pages that the prompts' responses share.

A prompt's pages are shared by all its responses; a response's own tokens lie in pages of their own.

Letters: U pages of a pool; C tokens of a page; Hkv heads of keys; D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightrft.models.attention import accumulation_type


@dataclass(eq=False, slots=True)
class Page:
    """A place for C tokens; its index changes when the pool closes a gap."""

    index: int


PROMPT_PAGE, ANSWER_PAGE, KERNEL_PAGE = 64, 32, 256
"""Tokens of a page of the cache; of one that a kernel reads, which takes multiples of 256 alone."""


class Pool:
    """Pages, the live ones always in front and without gaps; for each layer one tensor of keys and one of values.

    Keys are kept already multiplied by the attention's scaling, and in float32 even for a bfloat16 model, so that
    scores are never rounded to 8 bits. Those for a kernel, which adds up and scales in float32 itself, are kept as they are, and
    the tokens of a page before its heads: (U, C, Hkv, D).
    """

    def __init__(self, size: int, *, for_kernel: bool = False) -> None:
        """`size`: tokens of a page."""
        self.size, self.for_kernel = size, for_kernel
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
        if self.for_kernel:
            keys[page, offset], values[page, offset] = key, value
            return
        keys[page, :, offset] = key.to(keys.dtype) * scaling
        values[page, :, offset] = value

    def read(self, layer: int, pages: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values of the live pages, or of the first so many, (U, Hkv, C, D)."""
        keys, values = self._layers[layer]
        count = len(self) if pages is None else pages
        return keys[:count], values[:count]

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all pages that there is room for, for a kernel that is told which ones to read."""
        return self._layers[layer]

    def reserve(self, pages: int) -> None:
        """Room for so many pages in the layers there are."""
        for layer in self._layers:
            self._grow(layer, pages)

    def _room(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self._layers:
            self._grow(layer, len(self))
        elif self.for_kernel:
            shape = len(self), self.size, *key.shape[1:]
            self._layers[layer] = key.new_zeros(shape), value.new_zeros(shape)
        else:
            shape = len(self), key.shape[1], self.size, key.shape[2]
            self._layers[layer] = key.new_zeros(shape, dtype=accumulation_type(key)), value.new_zeros(shape)
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

    @classmethod
    def for_kernel(cls) -> Cache:
        """Pages that a kernel reads."""
        return cls(*(Pool(KERNEL_PAGE, for_kernel=True) for _ in range(2)))

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
    holders: int = 0
    """Responses that read this prompt, or are still to begin; of a response, 0."""

    def extend(self, count: int) -> None:
        """Makes room for `count` more tokens."""
        self.length += count
        while len(self.pages) * self.pool.size < self.length:
            self.pages.append(self.pool.take())

    def shrink(self, count: int) -> None:
        """Forgets the last `count` tokens, and gives back the pages that held no other."""
        self.length -= count
        kept = -(-self.length // self.pool.size)
        if kept < len(self.pages):
            self.pool.give_back(self.pages[kept:])
            del self.pages[kept:]

    @property
    def end(self) -> int:
        """Position after the last one."""
        return self.start + self.length

    @property
    def newest(self) -> tuple[int, int]:
        """Page and offset of the last one."""
        return self.pages[-1].index, (self.length - 1) % self.pool.size

    def places(self, count: int) -> list[tuple[int, int]]:
        """Page and offset of each of the last `count`."""
        size = self.pool.size
        return [(self.pages[i // size].index, i % size) for i in range(self.length - count, self.length)]


def _longer(tensor: Tensor, size: int) -> Tensor:
    out = tensor.new_zeros(size, *tensor.shape[1:])
    out[: len(tensor)] = tensor
    return out
