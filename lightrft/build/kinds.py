"""Kinds of models that a run can learn with, told by what a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightrft.build.tables import OWN
from lightrft.config import Config, ModelConfig
from lightrft.models.demands import ENGINE as DRAWS
from lightrft.models.describe import is_masked, is_pipeline
from lightrft.models.kinds import PolicyKind
from lightrft.models.masked import MaskedWords
from lightrft.models.masked_demands import ENGINE as REVEALS
from lightrft.models.pictures import Pictures
from lightrft.models.words import Words


@dataclass(frozen=True)
class Row:
    """A kind of model: how it is known, made, and sampled from."""

    holds: Callable[[ModelConfig], bool]
    make: Callable[[Config], PolicyKind]
    engine: str


KINDS: tuple[Row, ...] = (
    Row(is_pipeline, Pictures.of, DRAWS),
    Row(is_masked, MaskedWords.of, REVEALS),
    Row(lambda _: True, Words.of, OWN),
)
"""The first row that holds a model is its kind."""


def policy_of(config: Config) -> PolicyKind:
    """The kind of `model.path`, no weights read. ValueError, naming setting, value and cure, for settings that it cannot obey."""
    return next(row.make for row in KINDS if row.holds(config.model))(config)


def engine_of(config: ModelConfig) -> str:
    """The engine of this package that samples from a model with the actor's own weights."""
    return next(row.engine for row in KINDS if row.holds(config))
