"""The weights of a checkpoint as transformers writes it, read a piece at a time: no process needs to hold them all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from lightrft.config import ModelConfig
from lightrft.models.describe import RANDOM, is_pipeline, learned_part, model_folder, pipeline_folder

PIPELINE_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file of weights of a pipeline's part."""


@dataclass
class Weights:
    """Tensors by name, in safetensors files."""

    files: dict[str, Path]
    """Name of a tensor -> its file."""
    _opened: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ModelConfig) -> Weights | None:
        """The weights of `model.path`; None for a model without safetensors files (a random one, or one in an older format)."""
        if config.path.startswith(RANDOM):
            return None
        revision, single_name = config.revision, SAFE_WEIGHTS_NAME
        if is_pipeline(config):
            place = pipeline_folder(config)
            folder, single_name = str(place / learned_part(place)), PIPELINE_WEIGHTS
        else:
            folder = model_folder(config)
        index = _file(folder, f"{single_name}.index.json", revision)
        if index is not None:
            places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            found = {name: _file(folder, name, revision) for name in sorted(set(places.values()))}
            lost = [name for name, file in found.items() if file is None]
            if lost:
                raise ValueError(
                    f"model.path={config.path}: {lost[0]}, which its index names, is missing. Is the download complete?"
                )
            return cls({name: file for name, place in places.items() if (file := found[place]) is not None})
        single = _file(folder, single_name, revision)
        if single is None:
            return None
        with safe_open(single, framework="pt") as file:
            return cls(dict.fromkeys(file.keys(), single))

    def holds(self, names: Iterable[str]) -> bool:
        """Whether all these tensors are there, under these very names."""
        return all(name in self.files for name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._slice(name).get_shape())

    def expect(self, name: str, shape: Sequence[int]) -> None:
        """ValueError if a tensor has another shape than the model has it."""
        if self.shape(name) != tuple(shape):
            raise ValueError(
                f"{self.files[name]}: {name} has shape {self.shape(name)}, and the model that config.json describes "
                f"{tuple(shape)}. Do they belong together?"
            )

    def whole(self, name: str) -> Tensor:
        """All of a tensor."""
        found: Tensor = self._open(name).get_tensor(name)
        return found

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, read from its file; the whole of one without dimensions."""
        piece = self._slice(name)
        rows: Tensor = piece[start:stop] if piece.get_shape() else self.whole(name)
        return rows

    def _slice(self, name: str) -> Any:
        return self._open(name).get_slice(name)

    def _open(self, name: str) -> Any:
        path = self.files[name]
        if path not in self._opened:
            try:
                self._opened[path] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
        return self._opened[path]


def _file(folder: str, name: str, revision: str) -> Path | None:
    found = cached_file(folder, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)
