"""The global random generators of each rank, which go into checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightrft.utils.seeding import generator_states, restore_generators


class Generators:
    """The global random generators, as a RankPart."""

    def state(self) -> dict[str, Any]:
        """The states of the global generators of this rank."""
        return generator_states()

    def packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """State as it is: it can be written so."""
        return state

    def load(self, packed: dict[str, Any]) -> None:
        """Sets the global generators back to a state."""
        restore_generators(packed)

    def share(self, ranks: Sequence[dict[str, Any]], rank: int, size: int) -> None:
        """Nothing is taken: with another number of ranks they begin anew."""
