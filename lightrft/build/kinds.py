"""Which kind of model a run learns with, by what its folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightrft.config import Config, ModelConfig
from lightrft.models.describe import is_pipeline
from lightrft.models.kinds import PolicyKind
from lightrft.models.load import load_processor
from lightrft.models.pictures import Pictures
from lightrft.models.words import Words


@dataclass(frozen=True)
class Row:
    """A kind of model: how it is known, made, and sampled from."""

    holds: Callable[[ModelConfig], bool]
    make: Callable[[Config], PolicyKind]
    engine: str


KINDS: tuple[Row, ...] = (
    Row(is_pipeline, Pictures.of, Pictures.engine),
    Row(
        lambda _: True, lambda config: Words(config, load_processor(config.model, config.media)), Words.engine
    ),
)
"""The first row that holds a model is its kind."""


def policy_of(config: Config) -> PolicyKind:
    """The kind of `model.path`, its processor loaded and no weights read. ValueError for a folder of no known kind."""
    return next(row.make for row in KINDS if row.holds(config.model))(config)


def engine_of(config: ModelConfig) -> str:
    """The engine of this package that samples from a model with the actor's own weights."""
    return next(row.engine for row in KINDS if row.holds(config))
