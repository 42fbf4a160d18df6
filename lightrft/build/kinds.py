"""Which kind of model a run learns with, by what its folder holds."""

from __future__ import annotations

from collections.abc import Callable

from lightrft.config import Config, ModelConfig
from lightrft.models.kinds import PolicyKind
from lightrft.models.load import load_processor
from lightrft.models.pictures import Pictures
from lightrft.models.describe import is_pipeline
from lightrft.models.words import Words

KINDS: tuple[tuple[Callable[[ModelConfig], bool], Callable[[Config], PolicyKind]], ...] = (
    (is_pipeline, Pictures.of),
    (lambda _: True, lambda config: Words(config, load_processor(config.model, config.media))),
)
"""Whether a model is of a kind, and how that is made of the settings of a run; the first that says so is taken."""


def policy_of(config: Config) -> PolicyKind:
    """The kind of `model.path`, its processor loaded and no weights read. ValueError for a folder of no known kind."""
    return next(make for holds, make in KINDS if holds(config.model))(config)
