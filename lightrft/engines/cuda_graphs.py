"""Decoding passes that are recorded once and repeated (CUDA graphs).

On an accelerator a pass over a few tokens is short, and telling the device what to do, operation by operation, takes many times as
long. A recording tells it all at once, but always the same sizes on the same memory. So the layout of a pass is padded to sizes
that many passes share: answers that are none write to a page behind all live ones, and pages that nobody reads are hidden.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightrft.engines.paged_attention import Decoding, Reading, table
from lightrft.engines.paged_kernel import KernelPass
from lightrft.engines.pages import Cache, Pool, Stretch
from lightrft.engines.sizes import Sizes
from lightrft.models.attention import Layout
from lightrft.models.experts import has_experts
from lightrft.utils.device import can_lock_pages, recorded, recording_pool

AHEAD = 8
"""Tokens of each response that are drawn before any is fetched from the device. Those behind the end of a response are thrown away."""
AHEAD_OF_OTHERS = 2
"""Tokens drawn at once while prompts wait: the place of a response that has ended stays empty until the others have drawn theirs."""


Running = Sequence[tuple[Stretch, Stretch]]
"""The prompt and the own tokens of each answer, the newest included; siblings hold the same prompt object."""


class Pass(Protocol):
    """What a decoding pass over some running answers is told of their pages."""

    sizes: Sizes

    def __init__(self, running: Running) -> None: ...

    @staticmethod
    def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shapes of its tensors of int64 in a recording of this size."""
        ...

    def fill(self, host: dict[str, Tensor], sizes: Sizes) -> None:
        """Writes it to those tensors, which are 0 before, with nothing for answers and pages that are none."""
        ...

    @staticmethod
    def layout(data: dict[str, Tensor], cache: Cache) -> Layout:
        """Attention by these tensors on the device, and "newest": page and offset of each new token."""
        ...


class PlainPass:
    """A pass whose pages are read by products over all of them (paged_attention.py)."""

    def __init__(self, running: Running) -> None:
        self._parts = {name: table([pair[i] for pair in running]) for i, name in enumerate(("shared", "own"))}
        self._last = [own.end - 1 for _, own in running]
        own = self._parts["own"].sizes
        self.sizes = Sizes(len(running), *self._parts["shared"].sizes, own[0], own[2])

    @staticmethod
    def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Shapes of its tables."""
        return {
            "last": (sizes.answers,),
            "shared readers": (sizes.shared_pages, sizes.shared_width),
            "shared places": (sizes.answers, sizes.shared_depth, 3),
            "shared filled": (sizes.shared_pages,),
            "shared starts": (sizes.shared_pages,),
            "own readers": (sizes.own_pages, 1),
            "own places": (sizes.answers, sizes.own_depth, 3),
            "own filled": (sizes.own_pages,),
            "own starts": (sizes.own_pages,),
        }

    def fill(self, host: dict[str, Tensor], sizes: Sizes) -> None:  # noqa: ARG002  # as Pass has it
        """Writes the tables; pages that nobody reads are hidden."""
        count = len(self._last)
        host["last"][:count] = torch.tensor(self._last)
        for name, found in self._parts.items():
            pages, width, depth = found.sizes
            readers = torch.tensor(found.readers)
            host[f"{name} readers"][:pages] = readers[:, :1]
            host[f"{name} readers"][:pages, :width] = readers
            host[f"{name} places"][:, :, 2] = 1
            host[f"{name} places"][:count, :depth] = torch.tensor(found.places, dtype=torch.int64)
            host[f"{name} filled"][:pages] = torch.tensor(found.filled)
            host[f"{name} starts"][:pages] = torch.tensor(found.starts)

    @staticmethod
    def layout(data: dict[str, Tensor], cache: Cache) -> Layout:
        """From the tables on the device."""

        def reading(name: str, pool: Pool) -> Reading:
            tensors = (data[f"{name} {part}"] for part in ("readers", "places", "filled", "starts"))
            readers, places, filled, starts = tensors
            return Reading(pool, readers, places, filled, starts, data["last"], is_ragged=True, reach=None)

        return Decoding(
            reading("shared", cache.prompts), reading("own", cache.answers), data["newest"].unbind(1)
        )


class GraphRunner:
    """The recordings of one rollout: they hold while weights and cache stay where they are."""

    def __init__(self, backbone: Any, cache: Cache, device: torch.device) -> None:
        self._backbone, self._cache, self._device = backbone, cache, device
        self._form: type[Pass] = KernelPass if cache.answers.for_kernel else PlainPass
        self._recordings: list[_Recording] = []
        self._moves = (0, 0)
        self._pool: Any = None

    def hidden(
        self,
        running: Running,
        tokens: Sequence[int] | Tensor,
        positions: Sequence[int],
    ) -> Tensor | None:
        """(A, H) of the newest token of each (prompt, own) of `running`; None where the pass must be made plainly, as the first is.

        `tokens`: as numbers, or (A,) int64 on the device. At most AHEAD calls in a row are made without waiting for the device.
        """
        if self._cache.answers.is_empty:
            return None
        self._forget_moved()
        found = self._form(running)
        fitting = [r for r in self._recordings if r.sizes.holds(found.sizes)]
        recording = min(fitting, key=lambda r: r.sizes.cost, default=None) or self._record(
            found.sizes.rounded()
        )
        return recording.run(found, [stretch.newest for _, stretch in running], tokens, positions)

    def _record(self, sizes: Sizes) -> _Recording:
        self._cache.prompts.reserve(sizes.shared_pages)
        self._cache.answers.reserve(sizes.own_pages + 1)
        self._forget_moved()
        if not self._recordings:  # a pool ends with its last recording
            self._pool = recording_pool(self._device)
        made = _Recording(self._backbone, self._cache, sizes, self._form, self._device, self._pool)
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

    def __init__(
        self, backbone: Any, cache: Cache, sizes: Sizes, form: type[Pass], device: torch.device, pool: Any
    ) -> None:
        self.sizes, self._backbone, self._cache = sizes, backbone, cache
        self._form, self._device, self._pool = form, device, pool
        self._shapes: dict[str, tuple[int, ...]] = {
            "tokens": (1, sizes.answers),
            "positions": (1, sizes.answers),
            "newest": (sizes.answers, 2),
            **form.shapes(sizes),
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
        self, found: Pass, newest: Sequence[tuple[int, int]], tokens: Sequence[int] | Tensor, positions: Sequence[int]
    ) -> Tensor:  # fmt: skip
        """(A, H), good until the next call of any recording."""
        self._hosts.rotate()
        host, count = self._views(self._hosts[0].zero_()), len(tokens)
        if not isinstance(tokens, Tensor):
            host["tokens"][0, :count] = torch.tensor(tokens)
        host["positions"][0, :count] = torch.tensor(positions)
        host["newest"][:, 0] = self.sizes.own_pages  # behind all that is read
        host["newest"][:count] = torch.tensor(newest)
        found.fill(host, self.sizes)
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
        layout = self._form.layout(data, self._cache)
        out = self._backbone(
            input_ids=data["tokens"], position_ids=data["positions"], use_cache=False, layout=layout
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden
