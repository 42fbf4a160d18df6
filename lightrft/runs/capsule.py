"""Step capsules: everything one training step used, written down so that `lightrft replay` can compute it again.

RUN/capsules/step-000007/ holds `capsule.pt` (responses, weights, optimizer, random generators, configuration; see
utils/states.py), its CRC-32, and `recorded.json`, what came out: the metrics of every update and of the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lightrft.config import LogConfig
from lightrft.runs.layout import RunFolder
from lightrft.runs.storage import restored, stored
from lightrft.types import Trajectory
from lightrft.utils.atomic import folder, recover, write_text
from lightrft.utils.states import file_crc, read_state, write_state

log = logging.getLogger(__name__)

NORMS_SEEN = 50
"""Gradient norms whose median a spike is compared with."""
NORMS_NEEDED = 10
"""Norms to have seen before any finite one counts as a spike."""
MOST_UNASKED = 5
"""Capsules of spikes and NaN steps that a run keeps: each is as large as a checkpoint, and the first ones say most."""

Row = tuple[int, str, float | None, float | None, bool]
"""Update, metric, recorded value, replayed value (None where absent), and whether they are equal bit for bit."""


class Capsules:
    """Writes the capsules of the run in folder `run`. Making one touches no file."""

    def __init__(self, run: Path, config: LogConfig) -> None:
        self.run, self.folder, self.config = RunFolder(run), RunFolder(run).capsules, config
        self._norms: deque[float] = deque(maxlen=NORMS_SEEN)
        self._written: set[int] = set()

    def wanted(self, step: int) -> bool:
        """Whether log.capture_steps names this step."""
        return step in self.config.capture_steps

    def spike(self, norm: float) -> bool:
        """Whether this gradient norm is worth a capsule; remembers it. To be told every norm of the run, in order.

        True if it is NaN or infinite, or, with log.capture_spikes, that many times the median of the norms before it.
        """
        if not math.isfinite(norm):
            return True
        factor, known = self.config.capture_spikes, len(self._norms) >= NORMS_NEEDED
        high = factor > 0 and known and norm > factor * median(self._norms)
        self._norms.append(norm)
        return high

    def state(self) -> dict[str, Any]:
        """The norms seen, for the checkpoint."""
        return {"norms": list(self._norms)}

    def load(self, state: dict[str, Any]) -> None:
        """Takes a `state` back."""
        self._norms = deque(state["norms"], maxlen=NORMS_SEEN)

    def write(
        self,
        step: int,
        *,
        trajectories: Sequence[Trajectory],
        state: dict[str, Any],
        config_yaml: str,
        weights_hash: str,
        weight_version: int,
        rng: dict[str, Any],
        start: int,
    ) -> Path | None:
        """Writes down the step as it stands before optimizer update number `start` of the step; returns the folder.

        `state` and `rng` are those of that moment. A second call for a step keeps the first capsule, which begins
        earlier; None if it was not asked for and the run has MOST_UNASKED of those already.
        """
        target = self.run.capsule(step)
        if step in self._written:
            return target
        if not self.wanted(step) and self._unasked(besides=step) >= MOST_UNASKED:
            log.warning(
                "step %d is not captured: %s has %d capsules of bad steps already.",
                step,
                self.folder,
                MOST_UNASKED,
            )
            return None
        recover(self.folder)
        content = {
            "step": step,
            "start": start,
            "config_yaml": config_yaml,
            "weights_hash": weights_hash,
            "weight_version": weight_version,
            "rng": rng,
            "state": state,
            "trajectories": stored(trajectories),
        }
        with folder(target) as unfinished:
            crc = write_state(unfinished / "capsule.pt", content)
            (unfinished / "capsule.crc32").write_text(crc, encoding="utf-8")
        self._written.add(step)
        return target

    def record(self, step: int, updates: Sequence[Mapping[str, float]], metrics: Mapping[str, float]) -> None:
        """Adds what came out, from the first update of the step on, to the capsule of the step if this run wrote one."""
        if step in self._written:
            content = {"updates": [_texts(update) for update in updates], "metrics": _texts(metrics)}
            write_text(
                self.run.capsule(step) / "recorded.json",
                json.dumps(content, indent=1, allow_nan=False),
            )

    def _unasked(self, besides: int) -> int:
        return sum(step != besides and not self.wanted(step) for step in _steps(self.folder))


@dataclass(frozen=True)
class Capsule:
    """A training step as it stood before its update number `start`, and what came out."""

    step: int
    start: int
    trajectories: list[Trajectory]
    state: dict[str, Any]
    """What strategy/in_memory.py `snapshot` gave of the actor."""
    config_yaml: str
    weights_hash: str
    weight_version: int
    rng: dict[str, Any]
    updates: list[dict[str, float]]
    """Recorded metrics of each update from `start` on; empty if the run was killed in the middle of the step."""
    metrics: dict[str, float]
    """Recorded metrics of the whole step."""

    def verify(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """ValueError if these are not the weights that the step began with (Trainable.weights)."""
        found = weights_hash(weights)
        if found != self.weights_hash:
            raise ValueError(
                f"the model is not the one of step {self.step}: its weights have the hash {found[:12]}, recorded is "
                f"{self.weights_hash[:12]}. Did the model at model.path change since, or does its code differ?"
            )


def read(run: Path, step: int) -> Capsule:
    """The capsule of a step. ValueError, naming those there are, if the run has none of it."""
    place = RunFolder(run).capsule(step)
    if not (place / "capsule.pt").is_file():
        there = ", ".join(map(str, _steps(RunFolder(run).capsules))) or "none"
        raise ValueError(
            f"{run} has no capsule of step {step} (there: {there}). Write one with --log.capture-steps {step}."
        )
    written = (place / "capsule.crc32").read_text(encoding="utf-8")
    if file_crc(place / "capsule.pt") != written:
        raise ValueError(
            f"{place / 'capsule.pt'} is not what was written (its CRC-32 differs), so nothing can be learned from it."
        )
    content = read_state(place / "capsule.pt")
    updates, metrics = _recorded(place / "recorded.json")
    return Capsule(
        **{**content, "trajectories": restored(content["trajectories"])},
        updates=updates[content["start"] :],
        metrics=metrics,
    )


def compare(recorded: Sequence[Mapping[str, float]], replayed: Sequence[Mapping[str, float]]) -> list[Row]:
    """Every metric of every update beside its replay; updates are numbered from 0. NaN equals NaN, and a metric that a recorded update does not
    have, since its version did not know it, is no difference."""
    rows: list[Row] = []
    for update in range(max(len(recorded), len(replayed))):
        old = recorded[update] if update < len(recorded) else {}
        new = replayed[update] if update < len(replayed) else {}
        rows.extend(
            (
                update,
                name,
                old.get(name),
                new.get(name),
                (name not in old and bool(old)) or _same(old.get(name), new.get(name)),
            )
            for name in {**old, **new}
        )
    return rows


def weights_hash(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over name, type, shape and raw bytes of each tensor, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return float(a).hex() == float(b).hex()  # tells -0.0 from 0.0, and a NaN is like any other


def _steps(capsules: Path) -> list[int]:
    return sorted(int(path.parent.name.removeprefix("step-")) for path in capsules.glob("step-*/capsule.pt"))


def _texts(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Numbers that JSON keeps exactly; it has none for NaN and infinity, so these become texts that float() reads."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else repr(value) for name, value in values.items()}


def _recorded(file: Path) -> tuple[list[dict[str, float]], dict[str, float]]:
    if not file.is_file():
        return [], {}
    content = json.loads(file.read_text(encoding="utf-8"))
    updates = [{name: float(value) for name, value in update.items()} for update in content["updates"]]
    return updates, {name: float(value) for name, value in content["metrics"].items()}
