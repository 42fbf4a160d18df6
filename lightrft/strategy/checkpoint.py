"""Checkpoints of a run: written whole or not at all, checked when read, the newest few kept.

RUN/checkpoints/step-000050/ holds `state.pt` (see utils/states.py), `meta.json` (step, time, library versions, size of
every file, CRC-32 of the state) and, if asked for, `model/`, the Hugging Face folder.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lightrft.config import CheckpointConfig
from lightrft.strategy.watch import PeerError
from lightrft.strategy.world import World
from lightrft.utils.atomic import folder, recover, remove_folder
from lightrft.utils.states import file_crc, read_state, write_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of the run in folder `run`. Making one touches no file; only the first rank ever writes."""

    run: Path
    config: CheckpointConfig
    world: World

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run / "checkpoints"

    def due(self, step: int) -> bool:
        """Whether the settings ask for a checkpoint after step `step` (counted from 1)."""
        return self.config.every_steps > 0 and step > 0 and step % self.config.every_steps == 0

    def save(
        self, step: int, state: dict[str, Any], model_saver: Callable[[Path], None] | None = None
    ) -> Path:
        """Writes the state after `step` steps, then removes all but the newest `checkpoint.keep`; called by all ranks.

        `model_saver(path)` writes the Hugging Face folder. Returns the checkpoint's folder. RuntimeError, on every
        rank, if the disk is full or not writable: then the checkpoints from before are still there.
        """
        target = self.folder / f"step-{step:06d}"
        failure: Exception | None = None
        if self.world.is_first:
            try:
                recover(self.folder)
                _write(target, step, state, model_saver)
                self._rotate(step)
            except Exception as error:
                failure = error
        told = self.world.gather(None if failure is None else str(failure))[0]
        if failure is not None:
            raise failure
        if told is not None:
            raise PeerError(f"rank 0 could not save: {told}")
        return target

    def latest(self) -> Path | None:
        """The newest complete checkpoint, None if there is none; called by all ranks.

        One that is torn or corrupt is named in a warning, and the one before it is taken.
        """
        found = None
        if self.world.is_first:
            recover(self.folder)
            found = newest(self.folder)
        first: Path | None = self.world.gather(found)[0]
        return first

    def load(self, path: Path) -> dict[str, Any]:
        """The state in a checkpoint folder, on the CPU. ValueError if there is none."""
        if not (path / "state.pt").is_file():
            raise ValueError(
                f"{path} is not a checkpoint: it has no state.pt. Give a folder like {self.folder}/step-000050."
            )
        state: dict[str, Any] = read_state(path / "state.pt")
        return state

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
        for _, path in older[self.config.keep :] + later:
            remove_folder(path)


def newest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint in a folder of checkpoints; a warning for each bad one that it passes over."""
    for _, path in _found(checkpoints):
        wrong = problem(path)
        if wrong is None:
            return path
        log.warning("checkpoint %s is not used: %s. Taking the one before it.", path, wrong)
    return None


def problem(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is complete and every byte of its state is as it was written."""
    try:
        meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
        sizes, crc = dict(meta["bytes"]), meta["crc32"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"meta.json cannot be read ({error})"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    if file_crc(checkpoint / "state.pt") != crc:
        return "state.pt is not what was written (its CRC-32 differs)"
    return None


def _found(checkpoints: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, the newest first."""
    named = [(path.name.removeprefix("step-"), path) for path in checkpoints.glob("step-*")]
    return sorted(((int(step), path) for step, path in named if step.isdecimal()), reverse=True)


def _write(
    target: Path, step: int, state: dict[str, Any], model_saver: Callable[[Path], None] | None
) -> None:
    with folder(target) as unfinished:
        crc = write_state(unfinished / "state.pt", state)
        if model_saver is not None:
            model_saver(unfinished / "model")
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        meta = {
            "step": step,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version()}
            | {name: metadata.version(name) for name in ("torch", "transformers", "numpy")},
            "bytes": {str(path.relative_to(unfinished)): path.stat().st_size for path in files},
            "crc32": crc,
        }
        (unfinished / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")
