"""A Hugging Face folder of a model's weights as they come: no more than one file's worth of them is in memory at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import PrefixChange, revert_weight_conversion

from lightrft.models.load import save_words
from lightrft.models.logprobs import causal_lm
from lightrft.models.lora import merged_adapters, plain_parameters, plain_state
from lightrft.models.processor import Processor
from lightrft.models.shards import Shards

FILE_BYTES = 5 * 10**9
"""The most bytes of a file of weights, as transformers has it."""


def write_folder(
    model: nn.Module,
    processor: Processor,
    weights: Iterable[tuple[str, Tensor]],
    folder: Path,
    *,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes a folder that plain transformers loads.

    `model` tells the shape; `weights` are under the names of the plain model, each whole, adapters folded in (Trainable.weights).
    The saved config names no attention implementation of ours, and the type of the weights.
    """
    plain: Any = causal_lm(model)
    files = Files(plain, folder, file_bytes)
    for name, weight in weights:
        files.add(name, weight)
    files.close()
    config = copy.deepcopy(plain.config)
    config.dtype = str(files.dtype).removeprefix("torch.")
    config.architectures = [type(plain).__name__]
    config.save_pretrained(folder)
    save_words(processor, folder)


def save_model(model: nn.Module, processor: Processor, folder: Path) -> None:
    """The folder of a model whose weights are whole; adapters are merged into them."""
    with merged_adapters(model):
        write_folder(model, processor, plain_state(model).items(), folder)


def published(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights named and cut as in the files that transformers writes, which is how other programs know them, whatever files
    the model came from.

    Of a model that transformers computes with other names or cuts than it writes (experts in one tensor, say), the weights of
    a layer are in memory together; of any other, one at a time. `weights` are in the model's order.
    """
    plain = _for_writing(model)
    if plain._weight_conversions is None:
        yield from weights
        return
    for _, layer in groupby(weights, key=lambda named: _layer(named[0])):
        yield from _written(plain, dict(layer)).items()


def _for_writing(model: nn.Module) -> Any:
    """The model as transformers' own writing of weights asks it for names, whatever files it came from.

    Of a model that came from none, transformers leaves out what checkpoints have before the weights of towers that see
    (`vision_tower.vision_model.` in LLaVA, Gemma 3, PaliGemma), and other programs look for.
    """
    plain: Any = copy.copy(causal_lm(model))
    rules = get_model_conversion_mapping(plain, add_legacy=False)
    kept = [r for r in rules if not isinstance(r, PrefixChange) or (r.scope_prefix and r.prefix_to_remove)]
    plain.__dict__["_weight_conversions"] = kept or None
    return plain


def _written(plain: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as in a file. transformers 5.19 doubles a part of the names of models that hear."""
    return {
        name.replace("language_model.model.model.", "language_model.model."): weight
        for name, weight in revert_weight_conversion(plain, weights).items()
    }


@dataclass
class Files:
    """The safetensors files of a folder, filled one after the other."""

    model: Any
    folder: Path
    file_bytes: int
    dtype: torch.dtype = torch.float32
    """Type of the first matrix that came."""
    _held: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first: dict[nn.Parameter, str] = {}
        for name, parameter in plain_parameters(self.model).items():
            first.setdefault(parameter, name)
        self._second = plain_parameters(self.model).keys() - set(first.values())
        self._plain, self._shards = _for_writing(self.model), Shards(self.folder, "model")
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, weight: Tensor) -> None:
        """Takes a weight; the second name of a tied one is left out. A layer's weights stay in one file, since transformers
        may write several of them as one."""
        if name in self._second:
            return
        if (
            self._held
            and self._size() + weight.nbytes > self.file_bytes
            and _layer(name) != _layer(*list(self._held)[-1:])
        ):
            self._write()
        if self._shards.is_empty and not self._held:
            self.dtype = weight.dtype
        self._held[name] = weight.detach().cpu().contiguous()

    def close(self) -> None:
        """Writes what is left, and the index if there are several files."""
        self._write()
        self._shards.close()

    def _size(self) -> int:
        return sum(weight.nbytes for weight in self._held.values())

    def _write(self) -> None:
        self._shards.write({n: w.contiguous() for n, w in _written(self._plain, self._held).items()})
        self._held = {}


def _layer(name: str) -> str:
    """The name up to the number of its layer."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name
