"""`lightrft export`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from lightrft.build.kinds import learned_of, policy_of
from lightrft.build.reward import build_model
from lightrft.config import Config, RewardTrainingConfig, RunConfig
from lightrft.models.adapters import write_adapter
from lightrft.models.base import check_base
from lightrft.models.classifiers import HEAD
from lightrft.models.export import FILE_BYTES, write_folder
from lightrft.models.kinds import Write
from lightrft.models.logprobs import causal_lm
from lightrft.models.lora import full_weights
from lightrft.models.processor import Processor
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.runs.layout import RunFolder
from lightrft.strategy.base import Saved
from lightrft.strategy.checkpoint import Checkpoints, problem
from lightrft.strategy.load_weights import reader
from lightrft.strategy.optimizer import check_shapes, learning
from lightrft.strategy.schedule_free import shown
from lightrft.utils.atomic import explained, folder
from lightrft.utils.paths import expanded


def writable(target: Path, file_gb: float = FILE_BYTES / 1e9) -> Path:
    """The folder to make, behind links. ValueError if it cannot be one, before anything is read."""
    if not file_gb > 0:
        raise ValueError(
            f"--file-gb {file_gb:g}: a file of weights needs room for something. For example: --file-gb 5"
        )
    target = expanded(target, "OUT").resolve()
    if target.is_dir() and not any(target.iterdir()) and target != Path.cwd():
        return target
    if target.is_dir():
        raise ValueError(f"{target} is not empty, or where you are. Name a new folder.")
    if target.exists():
        raise ValueError(f"{target} is a file. Name a new folder.")
    return target


def export(
    config: RunConfig, run: Path, target: Path, step: int | None, file_gb: float, output: str = ""
) -> int:
    """Makes a folder that transformers loads, or diffusers of a diffusion model, of the model in a checkpoint of any backend, on one process, a file's worth at a time.

    `output`: the one output of a reward model that the folder is to have, for programs that read one alone; empty: all.
    """
    target = writable(target, file_gb)
    outputs = config.outputs if isinstance(config, RewardTrainingConfig) else []
    if output and output not in outputs:
        raise ValueError(
            f"--output {output}: "
            + (
                f"the run trained {', '.join(outputs)}. Name one of these."
                if outputs
                else "the run trained no reward model. Leave it out."
            )
        )
    place, stored = _stored(config, run, step)
    write, source = _described(config, int(file_gb * 1e9))
    module = source.empty()
    weights = full_weights(module, reader(module, source, stored), source.dtype)
    if output:
        weights = only_output(module, weights, outputs.index(output), output)
    with explained(target.parent), folder(target) as unfinished:
        write(module, weights, unfinished)
    _tell(target, "model", place)
    return 0


def export_adapter(config: RunConfig, run: Path, target: Path, step: int | None) -> int:
    """Makes a folder that peft loads onto the plain model, of the adapters in a checkpoint of any backend, in float32 and on one process.

    ValueError for a run that learned none.
    """
    target = writable(target)
    if not config.model.lora.rank:
        raise ValueError(
            f"--adapter: {run} learned no adapters (model.lora.rank=0). Leave --adapter out to export the whole model."
        )
    place, stored = _stored(config, run, step)
    module = _described(config, FILE_BYTES)[1].empty()
    adapters = _learned(module, stored)
    with explained(target.parent), folder(target) as unfinished:
        write_adapter(module, adapters, unfinished)
    _tell(target, "adapter", place)
    return 0


def _learned(module: nn.Module, stored: Saved) -> Mapping[str, Tensor]:
    """What learned of a model, whole and in float32, by the names of its parameters. ValueError if the checkpoint is of another model."""
    found = {
        f"weights/{name}": torch.empty(p.shape, dtype=torch.float32, device="cpu")
        for name, p in learning(module)
    }
    shapes = stored.shapes()
    check_shapes({name: shape for name, shape in shapes.items() if name.startswith("weights/")}, found)
    stored.into(found)
    return {name.removeprefix("weights/"): tensor for name, tensor in found.items()}


def _stored(config: RunConfig, run: Path, step: int | None) -> tuple[Path, Saved]:
    """A run's checkpoint after that step, or its newest complete one, and what it holds of the policy. ValueError where there is none."""
    checkpoints = Checkpoints(RunFolder(run).checkpoints, config.checkpoint, World())
    place = checkpoints.latest(clear=False) if step is None else checkpoints.of(step)
    if place is None:
        raise ValueError(f"{checkpoints.folder} holds no complete checkpoint.")
    wrong = None if step is None else problem(place)  # `latest` has looked already
    if wrong is not None:
        raise ValueError(f"checkpoint {place} cannot be used: {wrong}.")
    state = checkpoints.load(place)
    check_base(config.model, state.get("base", ""), place)
    models = state["models"]
    name = "actor" if "actor" in models else "model"  # of train, of the others
    return place, shown(models[name], state["numbers"][name])


def _tell(target: Path, what: str, place: Path) -> None:
    Console().print(f"{target}: the {what} after {place.name}", soft_wrap=True, markup=False, highlight=False)


def only_output(
    module: Any, weights: Iterable[tuple[str, Tensor]], place: int, name: str
) -> Iterator[tuple[str, Tensor]]:
    """The weights of a reward model with one of its outputs alone, which its config says then."""
    config = causal_lm(module).config
    config.num_labels, config.id2label, config.label2id = 1, {0: name}, {name: 0}
    for key, weight in weights:
        yield key, weight[place : place + 1] if key == f"{HEAD}.weight" else weight


def _described(config: RunConfig, file_bytes: int) -> tuple[Write, Source]:
    """What writes the folder, in files of at most so many bytes, and the model as a run of these settings loads it."""
    if isinstance(config, Config):
        kind = policy_of(config)
        return partial(kind.write, file_bytes=file_bytes), kind.source()
    if isinstance(config, RewardTrainingConfig):
        processor, source = build_model(config)
        return partial(_words, processor, file_bytes), source
    return learned_of(config.model, config.media, file_bytes)


def _words(
    processor: Processor,
    file_bytes: int,
    module: nn.Module,
    weights: Iterable[tuple[str, Tensor]],
    folder: Path,
) -> None:
    write_folder(module, processor, weights, folder, file_bytes=file_bytes)
