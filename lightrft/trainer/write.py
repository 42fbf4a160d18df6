"""Writes the folders that a run leaves: its model, its adapters."""

from __future__ import annotations

from pathlib import Path

from lightrft.models.adapters import write_adapter
from lightrft.models.kinds import Write
from lightrft.parallel.world import World
from lightrft.strategy.base import Trainable
from lightrft.strategy.learned import learned
from lightrft.utils.atomic import folder


def write_model(model: Trainable, write: Write, target: Path, world: World) -> None:
    """The Hugging Face folder of a model's present weights; called by all ranks."""
    with model.adapters_merged():
        if world.is_first:
            with folder(target) as unfinished:
                write(model.module, model.weights(), unfinished)
        else:
            for _ in model.weights():  # takes part in gathering them
                pass
    world.barrier()


def write_adapters(model: Trainable, target: Path, world: World) -> None:
    """The folder of a model's present adapters; called by all ranks."""
    weights = learned(model, world)
    if world.is_first:
        with folder(target) as unfinished:
            write_adapter(model.module, weights, unfinished)
    world.barrier()
