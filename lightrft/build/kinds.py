"""Kinds of models that a run can learn with, told by what a folder holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lightrft.build.tables import OWN
from lightrft.config import Config, MediaConfig, ModelConfig
from lightrft.models.demands import ENGINE as DRAWS
from lightrft.models.describe import is_masked, is_pipeline
from lightrft.models.export import FILE_BYTES, write_folder
from lightrft.models.kinds import PolicyKind, Write
from lightrft.models.load import load_processor
from lightrft.models.masked import MaskedWords
from lightrft.models.masked_demands import ENGINE as REVEALS
from lightrft.models.pictures import Pictures
from lightrft.models.pipelines import FlowSource, Pipeline
from lightrft.models.source import Source
from lightrft.models.words import Words

Learned = tuple[Write, Source]
"""What writes the folder of a model, and where its weights come from."""


def _words(config: ModelConfig, media: MediaConfig, file_bytes: int) -> Learned:
    processor = load_processor(config, media)

    def write(module: nn.Module, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
        write_folder(module, processor, weights, folder, file_bytes=file_bytes)

    return write, Source(config)


def _pipeline(config: ModelConfig, media: MediaConfig, file_bytes: int) -> Learned:  # noqa: ARG001  # a row's shape
    pipeline = Pipeline(config)

    def write(module: nn.Module, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:  # noqa: ARG001  # its folder tells the shape
        pipeline.write(weights, folder, file_bytes=file_bytes)

    return write, FlowSource(config)


@dataclass(frozen=True)
class Row:
    """A kind of model: how it is known, made, and sampled from."""

    holds: Callable[[ModelConfig], bool]
    make: Callable[[Config], PolicyKind]
    engine: str
    learned: Callable[[ModelConfig, MediaConfig, int], Learned] = _words
    """Settings of a model that learned from given responses, bytes of a file -> how it is written."""


KINDS: tuple[Row, ...] = (
    Row(is_pipeline, Pictures.of, DRAWS, _pipeline),
    Row(is_masked, MaskedWords.of, REVEALS),
    Row(lambda _: True, Words.of, OWN),
)
"""The first row that holds a model is its kind."""


def policy_of(config: Config) -> PolicyKind:
    """The kind of `model.path`, no weights read. ValueError, naming setting, value and cure, for settings that it cannot obey."""
    return next(row.make for row in KINDS if row.holds(config.model))(config)


def learned_of(config: ModelConfig, media: MediaConfig, file_bytes: int = FILE_BYTES) -> Learned:
    """How a model that learned from given responses is written, in files of at most so many bytes, and read."""
    return next(row.learned for row in KINDS if row.holds(config))(config, media, file_bytes)


def engine_of(config: ModelConfig) -> str:
    """The engine of this package that samples from a model with the actor's own weights."""
    return next(row.engine for row in KINDS if row.holds(config))
