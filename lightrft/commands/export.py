"""`lightrft export`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lightrft.config import Config, SFTConfig
from lightrft.models.export import write_folder
from lightrft.models.load import load_processor
from lightrft.models.lora import full_weights
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.runs.layout import RunFolder
from lightrft.strategy.checkpoint import Checkpoints, problem
from lightrft.strategy.load_weights import reader
from lightrft.utils.atomic import explained, folder


def export(config: Config | SFTConfig, run: Path, target: Path, step: int | None, file_gb: float) -> int:
    """Makes a Hugging Face folder of the model in a checkpoint of any backend, on one process, a file's worth at a time."""
    checkpoints = Checkpoints(RunFolder(run).checkpoints, config.checkpoint, World())
    place = checkpoints.latest(clear=False) if step is None else checkpoints.of(step)
    if place is None:
        raise ValueError(f"{checkpoints.folder} holds no complete checkpoint.")
    wrong = None if step is None else problem(place)  # `latest` has looked already
    if wrong is not None:
        raise ValueError(f"checkpoint {place} cannot be used: {wrong}.")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty. Name a new folder.")
    models = checkpoints.load(place)["models"]
    stored = models["actor"] if "actor" in models else models["model"]  # of train, of sft
    processor = load_processor(config.model, config.media)
    source = Source(config.model)
    module = source.empty()
    weights = full_weights(module, reader(module, source, stored), source.dtype)
    with explained(target.parent), folder(target) as unfinished:
        write_folder(module, processor, weights, unfinished, file_bytes=int(file_gb * 1e9))
    Console().print(f"{target}: the model after {place.name}", soft_wrap=True, markup=False, highlight=False)
    return 0
