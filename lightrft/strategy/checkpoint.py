"""Checkpoints of a run: written whole or not at all, checked when read, the newest few kept.

RUN/checkpoints/step-000050/ holds `state.pt` (plain state, see utils/states.py), `tensors/` (of the models: each rank
writes its own pieces, by torch.distributed.checkpoint as safetensors), and `meta.json` (step, time, library versions, size
and CRC-32 of every file). Nothing in it is code, and any number of ranks can read what any other number wrote.
"""

from __future__ import annotations

import json
import logging
import platform
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from lightrft.config import CheckpointConfig
from lightrft.parallel.watch import PeerError
from lightrft.parallel.world import World
from lightrft.strategy.load_weights import placed, rows
from lightrft.utils.atomic import explained, folder, recover, remove_folder
from lightrft.utils.states import file_crc, plain, read_state, write_state

log = logging.getLogger(__name__)

TENSORS = "tensors"
Gather = Callable[[Any], list[Any]]
"""The values of all ranks, by rank."""


class Reader(HuggingFaceStorageReader):
    """Reads the headers of the files once, however often tensors are asked for."""

    @cached_property
    def known(self) -> Metadata:
        """The tensors there are, and where each lies."""
        return super().read_metadata()

    def read_metadata(self) -> Metadata:
        """The headers that were read when this was made."""
        return self.known


@dataclass(frozen=True)
class Stored:
    """The tensors of one model in a checkpoint. See strategy/base.py: Saved."""

    place: Path
    model: str

    @cached_property
    def _reader(self) -> Reader:
        return Reader(str(self.place))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and whole shapes of the model's tensors."""
        return {
            name.removeprefix(f"{self.model}/"): tuple(entry.size)
            for name, entry in self._reader.known.state_dict_metadata.items()
            if name.startswith(f"{self.model}/") and isinstance(entry, TensorStorageMetadata)
        }

    def into(self, tensors: dict[str, Tensor]) -> None:
        """Each rank reads what it holds by itself."""
        named = {f"{self.model}/{name}": tensor for name, tensor in tensors.items()}
        with _quiet():
            dcp.load(named, storage_reader=self._reader, no_dist=True)


@dataclass
class Checkpoints:
    """The checkpoints of a run, each in a folder of its own in `folder`. Making this touches no file."""

    folder: Path
    config: CheckpointConfig
    world: World
    _thread: threading.Thread | None = None
    _failure: list[BaseException] = field(default_factory=list)

    def due(self, step: int) -> bool:
        """Whether the settings ask for a checkpoint after step `step` (counted from 1)."""
        return self.config.every_steps > 0 and step > 0 and step % self.config.every_steps == 0

    def save(
        self, step: int, state: dict[str, Any], models: Mapping[str, Mapping[str, Tensor]] | None = None
    ) -> Path:
        """Writes the state after `step` steps, then removes all but the newest `checkpoint.keep_last`; called by all ranks.

        `state` is the first rank's; `models`: name of a model -> this rank's tensors (Trainable.tensor_state). Returns the
        checkpoint's folder. RuntimeError, on every rank, if the disk is full or not writable: then the checkpoints from
        before are still there. With checkpoint.background the files are written while the program goes on, and such an
        error comes with the next call of `save` or `wait`.
        """
        self.wait()
        tensors = {f"{m}/{name}": t for m, of_model in (models or {}).items() for name, t in of_model.items()}
        if not self.config.background:
            self._write(step, state, tensors, self.world.gather, None)
            return self.of(step)
        kept = {name: _copied(tensor) for name, tensor in tensors.items()}
        gather = partial(_gathered, group=self._group, size=self.world.size)
        work = partial(self._write, step, _detached(state), kept, gather, self._group)
        self._thread = threading.Thread(target=self._watched, args=(work,), name="checkpoint")
        self._thread.start()
        return self.of(step)

    def wait(self) -> None:
        """Until nothing is being written any more. RuntimeError if what was could not be; called by all ranks."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure:
            raise self._failure.pop()

    def latest(self, *, clear: bool = True) -> Path | None:
        """The newest complete checkpoint, None if there is none; called by all ranks, each checks some of the files.

        One that is torn or corrupt is named in a warning, and the one before it is taken. `clear`: remove what killed
        processes left; not for who only reads, since a live run may be writing there.
        """
        if clear and self.world.is_first:
            recover(self.folder)
        for path in self.world.gather([path for _, path in _found(self.folder)])[0]:
            told = self.world.gather(problem(path, self.world.rank, self.world.size))
            wrong = next((one for one in told if one is not None), None)
            if wrong is None:
                found: Path = path
                return found
            log.warning("checkpoint %s is not used: %s. Taking the one before it.", path, wrong)
        return None

    def load(self, path: Path) -> dict[str, Any]:
        """The state in a checkpoint folder, on the CPU, and under "models" the tensors of each (Stored). ValueError if there is none."""
        if not (path / "state.pt").is_file():
            raise ValueError(
                f"{path} is not a checkpoint: it has no state.pt. Give a folder like {self.folder}/step-000050."
            )
        state: dict[str, Any] = read_state(path / "state.pt")
        names = state.pop("models", [])
        return {**state, "models": {name: Stored(path / TENSORS, name) for name in names}}

    def of(self, step: int) -> Path:
        """The folder of the checkpoint after a step."""
        return self.folder / f"step-{step:06d}"

    @cached_property
    def _group(self) -> Any:
        """For what the writing thread tells the others, beside what the program does meanwhile."""
        return self.world.new_group()

    def _watched(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure.append(error)

    def _write(
        self, step: int, state: dict[str, Any], tensors: dict[str, Tensor], gather: Gather, group: Any
    ) -> None:
        first = self.world.is_first
        with ExitStack() as stack:
            unfinished = None
            with _agreed(gather):
                if first:
                    recover(self.folder)
                    unfinished = stack.enter_context(folder(self.of(step)))
            unfinished = gather(unfinished)[0]
            models = sorted({name.partition("/")[0] for rank in gather(list(tensors)) for name in rank})
            if models:
                with _agreed(gather):
                    _write_tensors(unfinished / TENSORS, tensors, group, alone=self.world.size == 1)
            with _agreed(gather):
                if first:
                    write_state(unfinished / "state.pt", {**state, "models": models})
            files = gather(
                sorted(str(f.relative_to(unfinished)) for f in unfinished.rglob("*") if f.is_file())
            )[0]
            mine = {name: file_crc(unfinished / name) for name in files[self.world.rank :: self.world.size]}
            sums = {name: crc for rank in gather(mine) for name, crc in rank.items()}
            with _agreed(gather):
                if first:
                    _write_meta(unfinished, step, sums)
                    stack.close()
                    self._rotate(step)

    def _rotate(self, step: int) -> None:
        """Removes what is older than the newest `keep`, and what a run that had gone further left behind."""
        older = [(n, path) for n, path in _found(self.folder) if n <= step]
        later = [(n, path) for n, path in _found(self.folder) if n > step]
        for number, path in later:
            log.warning(
                "%s is removed: the run went on from before step %d and is now at step %d.",
                path,
                number,
                step,
            )
        for _, path in older[self.config.keep_last :] + later:
            remove_folder(path)


def problem(checkpoint: Path, rank: int = 0, size: int = 1) -> str | None:
    """What is wrong with a checkpoint, None if it is complete and every byte is as it was written.

    Of `size` ranks each reads a part of the files.
    """
    try:
        meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
        sizes, sums = dict(meta["bytes"]), dict(meta["crc32"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"meta.json cannot be read ({error})"
    if sizes.keys() != sums.keys():
        return "meta.json is not what was written (it names other files in one list than in the other)"
    for name, expected in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected:
            return f"{name} has {file.stat().st_size} bytes instead of {expected}"
    for name in sorted(sums)[rank::size]:
        told = _misread(checkpoint / name, name, sums[name])
        if told is not None:
            return told
    return None


def _misread(file: Path, name: str, crc: str) -> str | None:
    """What is wrong with the bytes of a file called `name` in a checkpoint, None if their CRC-32 is this."""
    try:
        found = file_crc(file)
    except OSError as error:
        return f"{name} cannot be read ({error})"
    return None if found == crc else f"{name} is not what was written (its CRC-32 differs)"


def _found(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, the newest first."""
    named = [(path.name.removeprefix("step-"), path) for path in checkpoints.glob("step-*") if path.is_dir()]
    return sorted(((int(step), path) for step, path in named if step.isdecimal()), reverse=True)


@contextmanager
def _agreed(gather: Gather) -> Iterator[None]:
    """A part that fails on every rank if it fails on one."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    try:
        told = gather(None if failure is None else str(failure))
    except RuntimeError:
        if failure is None:
            raise
        raise failure from None  # what came first
    if failure is not None:
        raise failure
    for rank, message in enumerate(told):
        if message is not None:
            raise PeerError(f"rank {rank} could not save: {message}")


def _write_tensors(place: Path, tensors: dict[str, Tensor], group: Any, *, alone: bool) -> None:
    writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
    with explained(place.parent), _quiet():
        try:
            dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=alone)
        except dcp.api.CheckpointException as error:  # every rank's error by rank, as text with a traceback
            _, (cause, _) = min(error.failures.items())
            raise cause from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch does not warn that a process is alone when it was told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _write_meta(unfinished: Path, step: int, sums: Mapping[str, str]) -> None:
    meta = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
        "bytes": {name: (unfinished / name).stat().st_size for name in sorted(sums)},
        "crc32": dict(sorted(sums.items())),
    }
    (unfinished / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")


def _gathered(value: Any, *, group: Any, size: int) -> list[Any]:
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value, group=group)
    return values


def _copied(tensor: Tensor) -> Tensor:
    """A copy in host memory that no later update changes."""
    return placed(rows(tensor)[0].detach().to("cpu", copy=True), tensor)


def _detached(state: dict[str, Any]) -> dict[str, Any]:
    """The state in containers and tensors of its own."""
    found: dict[str, Any] = torch.utils._pytree.tree_map_only(Tensor, torch.Tensor.clone, plain(state))
    return found
