"""`lightrft replay`."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lightrft.algorithms.requirements import build_for
from lightrft.build.kinds import engine_of
from lightrft.build.rl import build_run
from lightrft.build.tables import OWN
from lightrft.config import AlgorithmConfig, Config, RolloutConfig, layers
from lightrft.runs.layout import RunFolder
from lightrft.strategy.in_memory import restore
from lightrft.trainer.rl import RLTrainer
from lightrft.utils.imports import resolve
from lightrft.utils.seeding import restore_generators

SKIPS = "skip_zero_advantage"
"""Option of the update that capsules of earlier versions do not name."""


def replay(run: Path, step: int) -> int:
    """Computes a captured step again and prints each metric beside the recorded one; 0 if all are equal, else 1."""
    from rich.table import Table

    from lightrft.runs.capsule import compare, read

    capsule = read(run, step)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        resolved = RunFolder(Path(scratch)).config
        resolved.write_text(capsule.config_yaml, encoding="utf-8")
        config = layers.load([str(resolved)], Config)
        if SKIPS not in capsule.config_yaml:  # of a version that read all responses
            config = replace(config, update=replace(config.update, skip_zero_advantage=False))
        quiet = replace(
            config.log,
            progress=False, tensorboard=False, to=[], capture_steps=[], on_step="", notify="", notify_key="",
        )  # fmt: skip
        config = replace(config, log=quiet, algorithm=as_sampled(config))
        config = replace(config, rollout=with_own_engine(config.rollout, engine_of(config.model)))
        trainer = build_run(config, Path(scratch), stack, started=time.perf_counter()).trainer
        assert isinstance(trainer, RLTrainer)
        restore(trainer.actor, capsule.state)
        capsule.verify(trainer.actor.weights())
        restore_generators(capsule.rng)
        updates = list(trainer.learner.learn(step, capsule.trajectories, first=capsule.start))
    table = Table("update", "metric", "recorded", "replayed", "", title=f"step {step} of {run}")
    rows = compare(capsule.updates, updates)
    for update, name, recorded, replayed, equal in rows:
        table.add_row(
            str(update + capsule.start), name, repr(recorded), repr(replayed), "=" if equal else "DIFFERS"
        )
    Console().print(table)
    same = all(row[-1] for row in rows)
    Console().print(
        "equal bit for bit"
        if same
        else "the step came out differently: another machine, thread count or library?"
    )
    return 0 if same else 1


def as_sampled(config: Config) -> AlgorithmConfig:
    """Settings of the algorithm with what algorithm.mismatch_correction=auto means for the engine that sampled, which need not be here."""
    found = build_for(config, resolve).config.mismatch_correction
    return replace(config.algorithm, mismatch_correction=found)


def with_own_engine(config: RolloutConfig, own: str = OWN) -> RolloutConfig:
    """Settings of the rollout with the package's `own` engine: what a step computes does not depend on who sampled its responses, nor need that one be here."""
    plain = RolloutConfig()
    sections = [f.name for f in fields(plain) if is_dataclass(getattr(plain, f.name)) and f.name != own]
    changes: dict[str, Any] = {name: getattr(plain, name) for name in sections}
    return replace(config, engine=own, **changes)
