"""The attention of new tokens over the pages of a cache by torch's variable-length flash kernel, which finds keys by a table of pages.

What a response sees is its prompt and itself: a call each, joined by their log-sum-exp (see models/attention.py). In the first the newest
tokens of adjacent siblings are the queries of one sequence, so that a prompt's pages are read once for all of them. Heads that share a head of
keys are laid down as queries of it, whose order does not matter where each sees everything.

Letters: A responses, each with one new token; N new tokens; S sequences of them; J pages of the longest; U pages of a pool; C tokens of a page;
Hq and Hkv heads, G = Hq / Hkv; D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightrft.config import RolloutConfig
from lightrft.engines.pages import KERNEL_PAGE, Cache, Pool, Stretch
from lightrft.engines.sizes import Sizes
from lightrft.models.attention import accumulation_type
from lightrft.models.operations import size_per_head
from lightrft.utils.device import has_varlen_kernel, sent

_flash = torch.ops.aten._flash_attention_forward
WIDEST = 256
"""Most numbers of a head that the kernel takes; it takes multiples of 8."""


@dataclass(frozen=True)
class Paged:
    """Queries laid end to end, and the pages that each stretch of them sees."""

    queries: Tensor
    """(S + 1,) int32, where the stretches of new tokens begin, and the end of the last."""
    pages: Tensor
    """(S, J) int32, pages in the order of their tokens; behind the last one any."""
    lengths: Tensor
    """(S,) int32, tokens in those pages that count."""
    ends: Tensor
    """(S + 1,) int32, 0 and the sums of `lengths` so far."""
    longest: int
    """Most new tokens of a stretch, or more."""
    _queries: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, stretches: Sequence[tuple[Stretch, int]], device: torch.device) -> Paged:
        """From what is seen, each with the number of tokens that see it."""
        depth = max(len(seen.pages) for seen, _ in stretches)
        counts = [count for _, count in stretches]
        rows = [[page.index for page in seen.pages] for seen, _ in stretches]
        numbers = (
            [0, *accumulate(counts)],
            [row + [0] * (depth - len(row)) for row in rows],
            [seen.length for seen, _ in stretches],
            [0, *accumulate(seen.length for seen, _ in stretches)],
        )
        queries, pages, lengths, ends = (sent(torch.tensor(n, dtype=torch.int32), device) for n in numbers)
        return cls(queries, pages, lengths, ends, max(counts))

    def rows(self, group: int) -> Tensor:
        """`queries` where each token is so many queries; made for the first layer and kept for the others."""
        if group not in self._queries:
            self._queries[group] = self.queries * group
        return self._queries[group]


def paged_attention(
    query: Tensor, keys: Tensor, values: Tensor, seen: Paged, scaling: float, *, is_last: bool
) -> tuple[Tensor, Tensor]:
    """out (N, Hq, D) and log-sum-exp (N, Hq) of query (N, Hq, D) over keys and values (U, C, Hkv, D).

    A new token sees all that its stretch has in the pages or, where the new tokens are themselves the last there (`is_last`), what comes up
    to itself. Nothing waits for the device.
    """
    tokens, heads, _ = query.shape
    group = 1 if is_last else heads // keys.shape[2]
    q = query.unflatten(1, (-1, group)).transpose(1, 2).flatten(0, 1).contiguous()  # (N G, Hkv, D)
    out, total, *_ = _flash(
        q, keys, values, seen.rows(group), seen.ends,
        # For single queries it would turn heads into queries itself, and give its sums in an order of its own.
        max(2, seen.longest * group), seen.pages.shape[1] * keys.shape[1],
        0.0, is_last, False, scale=scaling, window_size_left=-1, window_size_right=0 if is_last else -1,
        seqused_k=seen.lengths, block_table=seen.pages,
        # What it would split among processors itself it joins wrongly (Dao-AILab/flash-attention, issue 1217).
        num_splits=1,
    )  # fmt: skip
    out = out.unflatten(0, (tokens, group)).transpose(1, 2).flatten(1, 2)
    return out, total.unflatten(1, (tokens, group)).transpose(0, 1).flatten(1, 2)


class KernelAttention:
    """New tokens that are written to their responses' pages, and see their prompts and what is before them: a Layout's `attend`."""

    def __init__(
        self, cache: _Pools, shared: Paged, own: Paged, places: Sequence[Tensor], *, is_last: bool
    ) -> None:
        """`cache`: pools of the prompts and of the responses; `places`: page and offset of each new token; `is_last`: as in `paged_attention`."""
        self._cache, self._shared, self._own = cache, shared, own
        self._places, self._is_last = places, is_last

    @classmethod
    def of_newest(cls, running: Sequence[tuple[Stretch, Stretch]], device: torch.device) -> KernelAttention:
        """The newest token of each (prompt, own tokens)."""
        places = torch.tensor([own.newest for _, own in running])
        return cls(
            (running[0][0].pool, running[0][1].pool),
            Paged.of(siblings(running), device),
            Paged.of([(own, 1) for _, own in running], device),
            sent(places, device).unbind(1),
            is_last=False,
        )

    @classmethod
    def of_ends(cls, ends: Sequence[tuple[Stretch, Stretch, int]], device: torch.device) -> KernelAttention:
        """The last tokens of each (prompt, own tokens, how many)."""
        places = torch.tensor([place for _, own, count in ends for place in own.places(count)])
        return cls(
            (ends[0][0].pool, ends[0][1].pool),
            Paged.of([(read, count) for read, _, count in ends], device),
            Paged.of([(own, count) for _, own, count in ends], device),
            sent(places, device).unbind(1),
            is_last=True,
        )

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
    ) -> Tensor:
        """(1, N, Hq, D); shapes as in models/attention.py: Layout."""
        if sliding_window is not None:
            raise ValueError(_no_window(sliding_window))
        layer, q = module.layer_idx, query[0].transpose(0, 1)
        prompts, answers = self._cache
        answers.write(layer, self._places, key[0].transpose(0, 1), value[0].transpose(0, 1), scaling)
        before, of_prompt = paged_attention(q, *prompts.whole(layer), self._shared, scaling, is_last=False)
        mine, of_mine = paged_attention(q, *answers.whole(layer), self._own, scaling, is_last=self._is_last)
        share = torch.sigmoid(of_prompt - of_mine)[..., None]
        exact = accumulation_type(query)
        return torch.lerp(mine.to(exact), before.to(exact), share.to(exact)).to(query.dtype).unsqueeze(0)


_Pools = tuple[Pool, Pool]


def siblings(running: Sequence[tuple[Stretch, Stretch]]) -> list[tuple[Stretch, int]]:
    """Prompts, each with how many adjacent answers read it."""
    return [
        (mine[0][0], len(mine))
        for mine in (list(g) for _, g in groupby(running, key=lambda pair: id(pair[0])))
    ]


class KernelPass:
    """The tables of a decoding pass, for a recording of some size (cuda_graphs.py: Pass)."""

    def __init__(self, running: Sequence[tuple[Stretch, Stretch]]) -> None:
        """`running`: (prompt, own tokens) of each answer, the newest included."""
        self._running, self._prompts = running, siblings(running)
        self.sizes = Sizes(
            answers=len(running),
            shared_pages=len(self._prompts),
            shared_width=1,
            shared_depth=max(len(prompt.pages) for prompt, _ in self._prompts),
            own_pages=len(running[0][1].pool),
            own_depth=max(len(own.pages) for _, own in running),
        )

    @staticmethod
    def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shapes of its tables; `shared_pages` counts prompts."""
        return {
            "queries": (sizes.shared_pages + 1,),
            "prompt pages": (sizes.shared_pages, sizes.shared_depth),
            "prompt lengths": (sizes.shared_pages,),
            "own pages": (sizes.answers, sizes.own_depth),
            "own lengths": (sizes.answers,),
        }

    def fill(self, host: dict[str, Tensor], sizes: Sizes) -> None:
        """Writes the tables, which are 0 before.

        Answers that are none see the last prompt and their own token, on the page behind all live ones: numbers, not what happens to lie there.
        """
        count, prompts = len(self._running), len(self._prompts)
        host["queries"][1:] = sizes.answers
        host["queries"][1:prompts] = torch.tensor(
            [*accumulate(n for _, n in self._prompts)][:-1], dtype=torch.int64
        )
        host["prompt lengths"][:] = 1
        host["prompt lengths"][:prompts] = torch.tensor([prompt.length for prompt, _ in self._prompts])
        host["own pages"][count:] = sizes.own_pages
        host["own lengths"][:] = 1
        host["own lengths"][:count] = torch.tensor([own.length for _, own in self._running])
        for name, rows in (
            ("prompt pages", [prompt.pages for prompt, _ in self._prompts]),
            ("own pages", [own.pages for _, own in self._running]),
        ):
            depth = max(map(len, rows))
            table = [[page.index for page in row] + [0] * (depth - len(row)) for row in rows]
            host[name][: len(table), :depth] = torch.tensor(table)

    @staticmethod
    def layout(data: dict[str, Tensor], cache: Cache) -> KernelAttention:
        """From the tables on the device."""
        found = {name: data[name].to(torch.int32) for name in KernelPass.shapes(Sizes(1, 1, 1, 1, 1, 1))}
        lengths = found["prompt lengths"], found["own lengths"]
        ends = [pad(x.cumsum(0, dtype=torch.int32), (1, 0)) for x in lengths]
        answers = len(lengths[1])
        alone = torch.arange(answers + 1, dtype=torch.int32, device=lengths[1].device)
        return KernelAttention(
            (cache.prompts, cache.answers),
            Paged(found["queries"], found["prompt pages"], lengths[0], ends[0], answers),
            Paged(alone, found["own pages"], lengths[1], ends[1], 1),
            data["newest"].unbind(1),
            is_last=False,
        )


SETTING = "rollout.native.attention_backend"
_TOLD, _CURE = f"{SETTING}=flash", f"Set {SETTING}=torch"


def check_backend(
    config: RolloutConfig, device: torch.device, dtype: torch.dtype, text: Callable[[], Any]
) -> None:
    """ValueError if rollout.native.attention_backend cannot be had; arguments as in `check_kernel`."""
    if config.native.attention_backend == "flash":
        check_kernel(device, dtype, text())


def check_kernel(device: torch.device, dtype: torch.dtype, text: Any) -> None:
    """ValueError if rollout.native.attention_backend=flash cannot be had on the device, for a model of this type and configuration of its text part."""
    if not has_varlen_kernel(torch.empty(0, dtype=dtype, device=device)):
        cure = _CURE if device.type == "cpu" else f"{_CURE}, or model.dtype=bfloat16"
        raise ValueError(
            f"{_TOLD}: its kernel is for models in bfloat16 or float16 on GPUs, and this one computes in {str(dtype).removeprefix('torch.')} on "
            f"{device.type}. {cure}."
        )
    window = _window(text)
    if window is not None:
        raise ValueError(_no_window(window))
    head = size_per_head(text)
    if head > WIDEST or head % 8:
        raise ValueError(
            f"{_TOLD}: the model's heads have {head} numbers, and its kernel takes multiples of 8 up to {WIDEST}. {_CURE}."
        )
    why = _unusable(device, dtype, head)
    if why:
        raise ValueError(
            f"{_TOLD}: torch {torch.__version__} does not read pages so on this device: {why}. {_CURE}, or take a newer torch."
        )


def _no_window(tokens: int) -> str:
    return f"{_TOLD}: layers of this model look {tokens} tokens far, which its kernel does not compute here. {_CURE}."


def _window(text: Any) -> int | None:
    """How far layers look, of a model that has some that do not look back to the beginning; None if it has none."""
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and not {"sliding_attention", "chunked_attention"} & set(kinds):
        return None
    found: int | None = getattr(text, "sliding_window", None) or getattr(text, "attention_chunk_size", None)
    return found


@cache
def _unusable(device: torch.device, dtype: torch.dtype, head: int) -> str:
    """Why the kernel cannot be had, on one line; empty if it gives what plain attention does, in either way that it is called in."""
    try:
        apart = max(_apart(device, dtype, head, is_last=is_last) for is_last in (False, True))
    except (
        RuntimeError,
        TypeError,
    ) as error:  # an operator without tables of pages, or a device that has none
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return "" if apart < 0.05 else f"what it gives is {apart:.2g} off"


def _apart(device: torch.device, dtype: torch.dtype, head: int, *, is_last: bool) -> float:
    """How far from plain attention it is for stretches of unequal length, so that pages of one stand behind nothing."""
    random = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 3, KERNEL_PAGE, 2, head, generator=random).to(device, dtype)
    query = torch.randn(4, 4, head, generator=random).to(device, dtype)
    tables, used, starts = [[2, 0], [1, 0]], [KERNEL_PAGE + 7, 9], [0, 1, 4]
    numbers = starts, tables, used, [0, *accumulate(used)]
    queries, pages, lengths, ends = (torch.tensor(n, dtype=torch.int32, device=device) for n in numbers)
    seen = Paged(queries, pages, lengths, ends, longest=3)
    out, total = paged_attention(query, keys, values, seen, 0.1, is_last=is_last)
    worst = 0.0
    for table, length, start, end in zip(tables, used, starts, starts[1:], strict=False):
        k, v = (x[table].flatten(0, 1)[:length].repeat_interleave(2, 1).float() for x in (keys, values))
        scores = torch.einsum("qhd,khd->qhk", query[start:end].float(), k) * 0.1
        if is_last:
            last = torch.arange(length - (end - start), length, device=device)
            later = torch.arange(length, device=device) > last[:, None]
            scores = scores.masked_fill(later[:, None], -torch.inf)
        right = torch.einsum("qhk,khd->qhd", scores.softmax(-1), v)
        for found, expected in ((out, right), (total, scores.logsumexp(-1))):
            worst = max(worst, float((found[start:end].float() - expected).abs().nan_to_num(torch.inf).max()))
    return worst
