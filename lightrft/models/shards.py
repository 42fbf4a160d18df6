"""The safetensors files of a folder of weights, and their index if there are several, as transformers and diffusers name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


@dataclass
class Shards:
    """Files that are written one after the other, and get their names when it is known how many they are."""

    folder: Path
    stem: str
    """What their names begin with."""
    _places: list[list[str]] = field(default_factory=list)
    """Names in each file written so far."""
    _total: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no file was written yet."""
        return not self._places

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """One file more."""
        self._total += sum(weight.nbytes for weight in weights.values())
        save_file(dict(weights), self._file(len(self._places)), metadata={"format": "pt"})
        self._places.append(list(weights))

    def close(self) -> None:
        """Names the files, and writes the index if there are several."""
        count = len(self._places)
        names = [
            f"{self.stem}-{place + 1:05d}-of-{count:05d}.safetensors"
            if count > 1
            else f"{self.stem}.safetensors"
            for place in range(count)
        ]
        for place, name in enumerate(names):
            self._file(place).rename(self.folder / name)
        if count > 1:
            found = {
                tensor: name for name, tensors in zip(names, self._places, strict=True) for tensor in tensors
            }
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(found.items()))}
            (self.folder / f"{self.stem}.safetensors.index.json").write_text(
                json.dumps(index, indent=2), encoding="utf-8"
            )

    def _file(self, place: int) -> Path:
        return self.folder / f"part-{place:05d}.safetensors"
