"""What a kind of model says for itself to be a policy: how it is read, computed and written. One object for each kind.

Nothing outside the rooms of models and engines asks which kind it has: `models/words.py` holds language models, `models/masked.py` those of
masked diffusion, `models/pictures.py` diffusion pipelines, and build/kinds.py the table of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from lightrft.config import Config
from lightrft.models.logprobs import LogProbs
from lightrft.models.source import Source
from lightrft.types import Batch, Inputs, Steps, Trajectory

Layout = Callable[[Sequence[Trajectory], bool], Inputs | Steps]
"""Responses, and whether siblings share their prompt -> what the model reads for them."""
Compute = Callable[[nn.Module, Batch, Config], LogProbs]
"""A model, a batch, the settings -> log-probs and entropy of every entry, (T,)."""
Write = Callable[[nn.Module, Iterable[tuple[str, Tensor]], Path], None]
"""A model that tells the shape, its whole weights one by one, an empty folder -> a folder that other programs load."""


class PolicyKind(Protocol):
    """A kind of model whose responses can be learned from."""

    @property
    def processor(self) -> Any:
        """Messages to prompts, entries to text (models/processor.py)."""
        ...

    @property
    def makes(self) -> frozenset[str]:
        """What its responses hold: of the views of a reward those in rewards/asked.py: ONLY."""
        ...

    def source(self, *, learns: bool = True) -> Source:
        """Where its weights come from."""
        ...

    def layout(self, answers: Sequence[Trajectory], share_prompts: bool) -> Inputs | Steps:
        """Layout of responses."""
        ...

    def logprobs(self, module: nn.Module, batch: Batch, config: Config) -> LogProbs:
        """Compute of a batch."""
        ...

    def blank(self) -> Trajectory:
        """A response of one entry, to be computed and not learned from."""
        ...

    @property
    def beside(self) -> int:
        """Bytes that `write` puts beside the weights, where that is more than a few files of settings."""
        ...

    def write(
        self, module: nn.Module, weights: Iterable[tuple[str, Tensor]], folder: Path, *, file_bytes: int = ...
    ) -> None:
        """Write of a model, in files of at most so many bytes."""
        ...
