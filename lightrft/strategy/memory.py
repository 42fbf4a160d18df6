"""Residents of device memory, phase by phase: one table, and moving only the difference."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from rich.table import Table
from torch import Tensor

from lightrft.parallel.status import STATUS
from lightrft.strategy.twins import Arriving, Leaving, Twins, exchange, link_of
from lightrft.utils.amounts import unit
from lightrft.utils.device import is_out_of_memory
from lightrft.utils.errors import RolloutError


class Phase(Enum):
    """What the program is doing. Phases take turns and do not nest."""

    IDLE = "idle"
    ROLLOUT = "rollout"
    SCORE = "score"
    SYNC = "sync"
    TRAIN = "train"
    WAIT = "wait"
    """For responses that are sampled beside the step (rollout.max_staleness); nothing is moved for it."""


RESIDENCY: dict[str, tuple[Phase, ...]] = {
    "actor weights": (Phase.TRAIN, Phase.SCORE, Phase.SYNC),
    "actor optimizer": (Phase.TRAIN,),
    "critic weights": (Phase.TRAIN, Phase.SCORE),
    "critic optimizer": (Phase.TRAIN,),
    "policy weights": (Phase.SYNC,),
    "reference weights": (Phase.SCORE,),
    "teacher weights": (Phase.SCORE,),
    "judge weights": (Phase.SCORE,),
    "judge cache": (Phase.SCORE,),
    "reward model weights": (Phase.SCORE,),
    "engine weights": (Phase.SYNC, Phase.ROLLOUT),
    "engine cache": (Phase.ROLLOUT,),
}
"""Resident -> the phases that need it in device memory. An engine without weights of its own samples with the actor's, which
are then needed in the rollout too; what else an engine may hold, only there. `policy`: a model that is only asked."""


REMEDIES: dict[str, str] = {
    "actor weights": "shard them (strategy.backend=fsdp, more processes), or set model.dtype=bfloat16",
    "actor optimizer": "keep it in host memory (strategy.fsdp.offload, strategy.deepspeed.offload_optimizer), or learn adapters "
    "(model.lora.rank)",
    "critic weights": "take a smaller critic.path, or an advantage without critic",
    "critic optimizer": "as for the actor's",
    "policy weights": "set model.dtype=bfloat16",
    "reference weights": "set algorithm.kl_coefficient=0 (in lightrft dpo loss=simpo or orpo), or model.lora.rank, with which the reference takes nothing",
    "teacher weights": "take a smaller teacher.path",
    "judge weights": "take a smaller judge.path, or ask a server (judge.engine)",
    "judge cache": "lower rollout.native.max_sequences",
    "reward model weights": "take smaller models in reward_model.paths",
    "engine weights": "share them out (rollout.vllm.tensor_parallel_size)",
    "engine cache": "lower rollout.native.max_sequences, or rollout.vllm.gpu_memory_utilization, rollout.sglang.mem_fraction_static, rollout.lmdeploy.cache_max_entry_count",
}
"""Resident -> which setting makes it smaller."""
WORKING: dict[Phase, str] = {
    Phase.ROLLOUT: "lower rollout.native.max_sequences and prefill_tokens, or rollout.max_tokens",
    Phase.SCORE: "lower update.tokens_per_micro_batch, update.logits_per_chunk",
    Phase.TRAIN: "lower update.tokens_per_micro_batch, update.logits_per_chunk, or set model.gradient_checkpointing",
}
"""Phase -> which setting makes what it computes smaller."""


def kind_of(name: str) -> str:
    """The row of RESIDENCY and REMEDIES that a resident belongs to: each of several reward models has a name of its own."""
    return re.sub(r"^reward model .* weights$", "reward model weights", name)


class NoRoomError(RolloutError, RuntimeError):
    """Device memory is used up: says by whom, and what to lower."""

    boundary = "memory"


class Resident(Protocol):
    """Something that takes device memory and can give it back."""

    def onload(self) -> None:
        """Brings it to the device."""
        ...

    def offload(self) -> None:
        """Frees its device memory; what it holds is not lost."""
        ...

    def nbytes(self) -> int:
        """Device memory it takes when loaded."""
        ...


@dataclass(frozen=True)
class PhaseEnd:
    """A phase that has ended, for whoever writes down when what happened."""

    phase: Phase
    seconds: float
    waited: float
    """The part of it in which other ranks were waited for, or responses."""
    moved: Sequence[str]
    """What its beginning moved: '-actor optimizer', '+engine cache'."""
    before_bytes: int
    after_bytes: int
    """Allocated on the device before and after that."""
    peak_bytes: int
    """Most bytes allocated in it; 0 where nobody counts."""


@dataclass
class MemoryPlan:
    """Entering a phase moves only the difference to the last one; leaving moves nothing."""

    measure: Callable[[], int]
    """Bytes allocated on the device now."""
    release: Callable[[], None] = lambda: None
    """Gives freed memory back to whoever lent it, between two phases."""
    most: Callable[[], int] = lambda: 0
    """Most bytes that were allocated since it was last called; 0 where nobody counts."""
    ended: Callable[[PhaseEnd], None] = lambda _: None
    """Told of each phase that has ended."""
    phase: Phase = Phase.IDLE
    peaks: dict[Phase, int] = field(default_factory=dict)
    """Most bytes allocated in each phase since `reset_peaks`, moving residents included."""
    seconds: dict[Phase, float] = field(default_factory=dict)
    """Time spent inside each phase since `reset_seconds`."""
    waited: dict[Phase, float] = field(default_factory=dict)
    """The part of it in which other ranks were waited for, in exchanges of World, or responses in phase wait."""
    moves: list[str] = field(default_factory=list)
    """What the last entry moved: '-optimizer', '+engine cache', and bytes before and after."""
    _copied: int = 0
    """Bytes that residents had copied when `reset_copied` was last called."""
    _link_seconds: float = 0.0
    """Likewise the seconds in which they did."""
    _rows: dict[str, tuple[Resident, frozenset[Phase]]] = field(default_factory=dict)
    _inside: bool = False

    def add(self, name: str, resident: Resident, *phases: Phase) -> None:
        """A resident and the phases that need it; it must be on the device now iff the current phase needs it, see `begin`."""
        self._rows[name] = (resident, frozenset(phases))

    def begin(self) -> None:
        """Moves out what came to the device while it was built or loaded: in phase idle nothing is held."""
        self.reset_link_seconds()  # those of other runs of this process
        for resident, _ in self._rows.values():
            resident.offload()

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        """Inside, exactly the residents of `phase` hold device memory."""
        if self._inside:
            raise RuntimeError(
                f"cannot enter {phase.value}: still inside {self.phase.value}; phases do not nest"
            )
        self._inside = True
        STATUS.set_phase(phase.value)
        start, waited = time.perf_counter(), STATUS.waited
        self.most()
        moved: Sequence[str] = ()
        held = (0, 0)
        try:
            moved, held = self._enter(phase)
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise NoRoomError(self._full(phase, WORKING.get(phase, ""))) from error
        finally:
            self._inside = False
            seconds = time.perf_counter() - start
            idle = seconds if phase is Phase.WAIT else STATUS.waited - waited
            end = PhaseEnd(phase, seconds, idle, moved, *held, self.most())
            self.peaks[phase] = max(self.peaks.get(phase, 0), end.peak_bytes)
            STATUS.set_phase("between phases") if sys.exc_info()[0] is None else None
            self.seconds[phase] = self.seconds.get(phase, 0.0) + end.seconds
            self.waited[phase] = self.waited.get(phase, 0.0) + end.waited
            self.ended(end)

    def _enter(self, phase: Phase) -> tuple[Sequence[str], tuple[int, int]]:
        """Moves; what was moved, and bytes on the device before and after."""
        before, here = self.phase, self.measure()
        if phase is Phase.WAIT:
            return (), (here, here)
        leaving = [n for n, (_, ps) in self._rows.items() if before in ps and phase not in ps]
        arriving = [n for n, (_, ps) in self._rows.items() if phase in ps and before not in ps]
        self._move(phase, leaving, arriving, frees=before is not phase)
        self.phase = phase
        there, signs = self.measure(), [f"-{n}" for n in leaving] + [f"+{n}" for n in arriving]
        if signs:
            self.moves = [*signs, f"{here / 2**30:.2f} -> {there / 2**30:.2f} GiB"]
        return signs, (here, there)

    def _move(self, phase: Phase, leaving: Sequence[str], arriving: Sequence[str], *, frees: bool) -> None:
        """Frees first, then fills: the peak stays low. Of tensors, some come while others still go (twins.py: exchange)."""
        going, coming = self._tensors(leaving), self._tensors(arriving)
        others = [name for name in leaving if name not in going]
        for name in others:
            self._rows[name][0].offload()
        if frees and others and coming:  # tensors need the room that is freed now
            self.release()
        name, goes = "", [r.leaving() for r in going.values()]
        try:
            exchange(goes, [r.arriving() for r in coming.values()], self.release)
            if frees:
                self.release()
            for name in arriving:
                if name not in coming:
                    self._rows[name][0].onload()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            name = name or next((n for n, r in coming.items() if not r.is_here()), "")
            raise NoRoomError(self._full(phase, REMEDIES.get(kind_of(name), ""), name)) from error

    def _tensors(self, names: Sequence[str]) -> dict[str, Tensors]:
        """Residents of these names that `exchange` moves."""
        rows = ((name, self._rows[name][0]) for name in names)
        return {name: resident for name, resident in rows if isinstance(resident, Tensors) and resident.moves}

    def _full(self, phase: Phase, lever: str, wanted: str = "") -> str:
        """What to say when there is no room for `wanted`, or for what a phase computes."""
        sizes = {n: r.nbytes() / 2**30 for n, (r, ps) in self._rows.items() if phase in ps}
        held = ", ".join(f"{n} {size:.2f} GiB" for n, size in sizes.items() if n != wanted)
        what = f"{wanted} ({sizes[wanted]:.2f} GiB)" if wanted else "what it computes"
        cures = [lever, *(REMEDIES[kind_of(n)] for n in sizes if kind_of(n) in REMEDIES and n != wanted)]
        return (
            f"no room on the device for {what} in phase {phase.value}. Held in it: {held or 'nothing'}; allocated now: "
            f"{self.measure() / 2**30:.2f} GiB. To lower it: {'; or '.join(filter(None, cures))}. Set strategy.offload=true to move out "
            "what a phase does not need; `lightrft plan` says beforehand what fits."
        )

    def reset_seconds(self) -> dict[str, float]:
        """Seconds per phase since the last call."""
        seconds = {phase.value: s for phase, s in self.seconds.items()}
        self.seconds.clear()
        self.waited.clear()
        return seconds

    def reset_peaks(self) -> dict[str, float]:
        """Most GiB of device memory by phase since the last call, where it is counted."""
        peaks = {phase.value: most / 2**30 for phase, most in self.peaks.items() if most}
        self.peaks.clear()
        return peaks

    def reset_copied(self) -> int:
        """Bytes that residents have copied between device and host memory since the last call, as far as they count them (Tensors)."""
        so_far = sum(r.twins.copied for r, _ in self._rows.values() if isinstance(r, Tensors))
        found, self._copied = so_far - self._copied, so_far
        return found

    def reset_link_seconds(self) -> float:
        """Seconds in which the links of those residents were busy since the last call."""
        devices = {
            torch.device(r.device) for r, _ in self._rows.values() if isinstance(r, Tensors) and r.moves
        }
        so_far = sum(link_of(device).seconds() for device in devices)
        found, self._link_seconds = so_far - self._link_seconds, so_far
        return found

    def working_seconds(self) -> dict[str, float]:
        """Seconds per phase since the last `reset_seconds`, without those of waiting for other ranks."""
        return {phase.value: s - self.waited[phase] for phase, s in self.seconds.items()}

    def table(self) -> Table:
        """The memory plan, for people: in GiB, or in MiB where no phase takes one."""
        shown = [Phase.ROLLOUT, Phase.SCORE, Phase.SYNC, Phase.TRAIN]
        sums = [sum(r.nbytes() for r, phases in self._rows.values() if phase in phases) for phase in shown]
        name_of_unit, one = unit(max(sums))
        table = Table("resident", name_of_unit, *(p.value for p in shown), title="device memory by phase")
        for name, (resident, phases) in self._rows.items():
            table.add_row(
                name, f"{resident.nbytes() / one:.2f}", *("x" if p in phases else "" for p in shown)
            )
        table.add_section()
        table.add_row(f"sum, {name_of_unit}", "", *(f"{count / one:.2f}" for count in sums))
        return table


@dataclass
class Tensors:
    """A resident made of tensors: a model's weights, an optimizer's state. They keep their identity when they move."""

    list: Callable[[], Sequence[Tensor]]
    device: str
    moves: bool = True
    """False where offloading is switched off, or device and host are the same."""
    planned_bytes: int = 0
    """What it will take once it exists: an optimizer has no state before its first step."""
    twins: Twins = field(default_factory=Twins)
    """Host memory for them, kept from one time to the next."""

    def onload(self) -> None:
        """Brings the tensors back to the device, if they move at all."""
        if self.moves:
            exchange([], [self.arriving()])

    def offload(self) -> None:
        """Moves the tensors to host memory, if they move at all."""
        if self.moves:
            exchange([self.leaving()], [])

    def leaving(self) -> Leaving:
        """What `exchange` moves out of it."""
        return self.twins, self.list()

    def arriving(self) -> Arriving:
        """What `exchange` brings back."""
        return self.twins, self.list(), torch.device(self.device)

    def is_here(self) -> bool:
        """Whether none of its tensors is in host memory."""
        return not any(self.twins.is_out(tensor) for tensor in self.list())

    def nbytes(self) -> int:
        """Bytes of the tensors, or those planned where more are still to be made."""
        return max(self.planned_bytes, sum(t.numel() * t.element_size() for t in self.list()))
