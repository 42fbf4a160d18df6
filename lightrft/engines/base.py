"""What an engine is: prompts in, sampled responses out. Structural; nothing to inherit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from lightrft.config import RolloutConfig
from lightrft.models.processor import Processor
from lightrft.strategy.memory import Resident
from lightrft.types import Completion, Prompt, Sampling
from lightrft.utils.errors import RolloutError

Progress = Callable[[int, int], None]
"""Called while generating with the responses finished and the tokens sampled so far."""


NONE = -1
"""The version of weights that are not there."""


class EngineError(RolloutError, RuntimeError):
    """An engine does not do what it is asked for."""

    boundary = "engine"


class EngineDiedError(EngineError):
    """An engine cannot go on: `restart` makes it usable again, without weights, or raises if that cannot be."""

    def __init__(self, told: str, restart: Callable[[], None]) -> None:
        super().__init__(told)
        self.restart = restart


class Engine(Protocol):
    """Samples responses from the policy. Every process of a run calls it with its own prompts. It begins with its parts offloaded."""

    weight_version: int
    """Updates the present weights have seen; set by whoever loads weights, stamped on every completion. NONE after they
    were dropped with a part that was offloaded: they must be loaded again."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """`sampling.n` responses to each prompt, in the order of the prompts; one to a prompt that says `continuation`.

        ValueError for a prompt without tokens. EngineDiedError if it cannot go on but may after a restart.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over full tensors under Hugging Face names. ValueError for a name the model does not have."""
        ...

    def parts(self) -> dict[str, Resident]:
        """The engine's residents, e.g. weights and cache."""
        ...


@runtime_checkable
class Sharing(Protocol):
    """An engine that can sample with the actor's own weights."""

    @property
    def shares_weights(self) -> bool:
        """Whether it does: the actor's weights are then needed in phase rollout too."""
        ...


@runtime_checkable
class Joint(Protocol):
    """An engine that several processes hold together, each of which must call `generate` as often as the others."""

    def any(self, here: bool) -> bool:
        """Whether one of the engine's processes says so. Called by all of them."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """An engine that can keep what it has read of responses, for a later call that goes on with them."""

    read_tokens: int
    """Tokens that the model has read so far, in all calls."""

    def keeping(self) -> AbstractContextManager[None]:
        """Inside, responses are kept; weights do not change there."""
        ...


MakeEngine = Callable[[nn.Module, Processor, RolloutConfig], Engine]
"""What rollout.engine names."""


def give(engine: Engine, weights: Iterable[tuple[str, Tensor]], version: int = 0) -> None:
    """All of an engine on the device, with these weights: for who uses it outside the phases of a run."""
    for part in engine.parts().values():
        part.onload()
    engine.load_weights(weights)
    engine.weight_version = version
