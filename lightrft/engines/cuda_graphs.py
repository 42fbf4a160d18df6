"""Decoding passes that are recorded once and repeated (CUDA graphs).

On an accelerator a pass over a few tokens is short, and telling the device what to do, operation by operation, takes many times as
long. A recording tells it all at once, but always the same sizes on the same memory. So the layout of a pass is padded to sizes
that many passes share: answers that are none write to a page behind all live ones, and pages that nobody reads are hidden.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.engines.paged_attention import Decoding, Reading, Table, table
from lightrft.engines.pages import Cache, Stretch
from lightrft.models.experts import has_experts
from lightrft.utils.device import can_lock_pages, recorded, recording_pool

AHEAD = 8
"""Tokens of each response that are drawn before any is fetched from the device. Those behind the end of a response are thrown away.

With top-p or min-p and no top-k the device is waited for once for each token all the same: whether the candidates suffice (sampling.py).
"""
AHEAD_OF_OTHERS = 2
"""Tokens drawn at once while prompts wait: the place of a response that has ended stays empty until the others have drawn theirs."""


@dataclass(frozen=True)
class Sizes:
    """Tensor sizes that a CUDA graph was captured for. Letters as in paged_attention.py."""

    answers: int
    shared_pages: int
    shared_width: int
    shared_depth: int
    own_pages: int
    own_depth: int

    def holds(self, other: Sizes) -> bool:
        """Whether a pass of that size fits without much waste."""
        pairs = list(zip(astuple(self), astuple(other), strict=True))
        return all(other <= mine for mine, other in pairs) and self.cost <= 2 * other.cost + 64

    @property
    def cost(self) -> int:
        """About what a pass computes: tokens, and the pages they meet."""
        return self.answers + self.shared_pages * self.shared_width + self.own_pages

    def rounded(self) -> Sizes:
        """A little more of each, so that passes to come fit too."""
        return Sizes(*map(_rounded, astuple(self)))


def _rounded(count: int) -> int:
    step = max(1, 2 ** (count.bit_length() - 3))
    return int(-(-count // step) * step)


class GraphRunner:
    """The recordings of one rollout: they hold while weights and cache stay where they are."""

    def __init__(self, backbone: Any, cache: Cache, device: torch.device) -> None:
        self._backbone, self._cache, self._device = backbone, cache, device
        self._recordings: list[_Recording] = []
        self._moves = (0, 0)
        self._pool: Any = None

    def hidden(
        self,
        running: Sequence[tuple[Stretch, Stretch]],
        tokens: Sequence[int] | Tensor,
        positions: Sequence[int],
    ) -> Tensor | None:
        """(A, H) of the newest token of each (prompt, own) of `running`; None where the pass must be made plainly, as the first is.

        `tokens`: as numbers, or (A,) int64 on the device. At most AHEAD calls in a row are made without waiting for the device.
        """
        if self._cache.answers.is_empty:
            return None
        self._forget_moved()
        shared, own = (table([pair[i] for pair in running]) for i in (0, 1))
        needed = Sizes(len(running), *shared.sizes, own.sizes[0], own.sizes[2])
        fitting = [r for r in self._recordings if r.sizes.holds(needed)]
        recording = min(fitting, key=lambda r: r.sizes.cost, default=None) or self._record(needed.rounded())
        newest = [stretch.newest for _, stretch in running]
        last = [stretch.end - 1 for _, stretch in running]
        return recording.run(shared, own, newest, last, tokens, positions)

    def _record(self, sizes: Sizes) -> _Recording:
        self._cache.prompts.reserve(sizes.shared_pages)
        self._cache.answers.reserve(sizes.own_pages + 1)
        self._forget_moved()
        if not self._recordings:  # a pool ends with its last recording
            self._pool = recording_pool(self._device)
        made = _Recording(self._backbone, self._cache, sizes, self._device, self._pool)
        self._recordings.append(made)
        return made

    def _forget_moved(self) -> None:
        """Recordings of a cache that lies elsewhere now, be it that a plain pass needed more room, are of no use."""
        moves = self._cache.prompts.moves, self._cache.answers.moves
        if moves != self._moves:
            self._recordings.clear()
            self._moves = moves


def uncapturable(module: nn.Module, text: Any) -> str:
    """What of the model waits for numbers from the device in a pass, which no recording can; empty if nothing does."""
    ropes = getattr(text, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    why = [f"{kind} rotary positions" for kind in ("dynamic", "longrope") if kind in kinds]
    why += ["experts"] if has_experts(module) else []
    return why[0] if why else ""


def captures(choice: str, module: nn.Module, text: Any) -> bool:
    """Whether passes of the model are recorded on devices that can. ValueError if they should be and cannot."""
    why = uncapturable(module, text)
    if choice == "on" and why:
        raise ValueError(
            f"rollout.native.cuda_graphs=on cannot record a model with {why}. Set it to auto or off, or take rollout.engine=vllm."
        )
    return choice != "off" and not why


class _Recording:
    """One, with the memory that its sizes and what is asked lie in."""

    def __init__(self, backbone: Any, cache: Cache, sizes: Sizes, device: torch.device, pool: Any) -> None:
        self.sizes, self._backbone, self._cache = sizes, backbone, cache
        self._device, self._pool = device, pool
        self._shapes = {
            "tokens": (1, sizes.answers),
            "positions": (1, sizes.answers),
            "last": (sizes.answers,),
            "newest": (sizes.answers, 2),
            "shared readers": (sizes.shared_pages, sizes.shared_width),
            "shared places": (sizes.answers, sizes.shared_depth, 3),
            "shared filled": (sizes.shared_pages,),
            "shared starts": (sizes.shared_pages,),
            "own readers": (sizes.own_pages, 1),
            "own places": (sizes.answers, sizes.own_depth, 3),
            "own filled": (sizes.own_pages,),
            "own starts": (sizes.own_pages,),
        }
        total = sum(torch.Size(shape).numel() for shape in self._shapes.values())
        # The device reads what was asked after the call has returned, so that the next calls write elsewhere.
        locked = can_lock_pages(device)
        self._hosts = deque(
            torch.zeros(total, dtype=torch.int64, pin_memory=locked) for _ in range(AHEAD if locked else 1)
        )
        self._data = torch.zeros(total, dtype=torch.int64, device=device)
        self._repeat: Callable[[], Tensor] | None = None

    def run(
        self, shared: Table, own: Table, newest: Sequence[tuple[int, int]], last: Sequence[int],
        tokens: Sequence[int] | Tensor, positions: Sequence[int],
    ) -> Tensor:  # fmt: skip
        """(A, H), good until the next call of any recording."""
        self._hosts.rotate()
        host, count = self._views(self._hosts[0].zero_()), len(tokens)
        if not isinstance(tokens, Tensor):
            host["tokens"][0, :count] = torch.tensor(tokens)
        host["positions"][0, :count] = torch.tensor(positions)
        host["last"][:count] = torch.tensor(last)
        host["newest"][:, 0] = self.sizes.own_pages  # behind all that is read
        host["newest"][:count] = torch.tensor(newest)
        for name, found in (("shared", shared), ("own", own)):
            pages, width, depth = found.sizes
            readers = torch.tensor(found.readers)
            host[f"{name} readers"][:pages] = readers[:, :1]
            host[f"{name} readers"][:pages, :width] = readers
            host[f"{name} places"][:, :, 2] = 1
            host[f"{name} places"][:count, :depth] = torch.tensor(found.places, dtype=torch.int64)
            host[f"{name} filled"][:pages] = torch.tensor(found.filled)
            host[f"{name} starts"][:pages] = torch.tensor(found.starts)
        self._data.copy_(self._hosts[0], non_blocking=True)
        if isinstance(tokens, Tensor):
            self._views(self._data)["tokens"][0, :count] = tokens
        if self._repeat is None:
            self._repeat = recorded(self._forward, self._device, self._pool)
        return self._repeat()[:count]

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [torch.Size(shape).numel() for shape in self._shapes.values()]
        parts = flat.split(sizes)
        return {
            name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def _forward(self) -> Tensor:
        data = self._views(self._data)

        def reading(name: str, pool: Any) -> Reading:
            tensors = (data[f"{name} {part}"] for part in ("readers", "places", "filled", "starts"))
            readers, places, filled, starts = tensors
            return Reading(pool, readers, places, filled, starts, data["last"], is_ragged=True, reach=None)

        layout = Decoding(
            reading("shared", self._cache.prompts),
            reading("own", self._cache.answers),
            data["newest"].unbind(1),
        )
        out = self._backbone(
            input_ids=data["tokens"], position_ids=data["positions"], use_cache=False, layout=layout
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden
