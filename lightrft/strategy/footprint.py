"""What a backend states of itself before it is made: device memory of a model, and bytes that processes exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

EXACT = 4
"""Bytes of a float32."""
ADAM = 8
"""Bytes of AdamW's two moments of a weight that learns; both are float32, as its gradient is."""


class Sizes(Protocol):
    """Sizes of a model, in numbers (not bytes) unless said."""

    @property
    def width(self) -> int:
        """Bytes of a number in the type the model computes in."""
        ...

    @property
    def weights(self) -> int:
        """All of them; tied ones count once."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of all of them as they rest on one process: `width` each, but for adapters and heads, which are float32 whatever the rest is, and for
        matrices that are rounded to 4 bits (model.lora.quantize_base)."""
        ...

    @property
    def learned(self) -> int:
        """Weights that learn: all, or adapters."""
        ...

    @property
    def learned_narrow(self) -> int:
        """Weights that learn and rest in a smaller type than float32."""
        ...

    @property
    def optimizer_state(self) -> int:
        """Bytes of what the optimizer keeps of the weights that learn (strategy/optimizers.py: state_bytes)."""
        ...

    @property
    def inside(self) -> int:
        """Weights in the blocks; the others are embeddings, head, the last norm, and towers of media."""
        ...

    @property
    def largest_block(self) -> int:
        """Weights of the largest block."""
        ...


@dataclass(frozen=True)
class Traffic:
    """Numbers (not bytes) that meet when a model learns: all processes' together, of which each sends its share."""

    summed_once: float = 0.0
    """Gradients, float32, that are summed in each update."""
    summed: float = 0.0
    """Gradients that are summed after each micro-batch."""
    gathered_once: float = 0.0
    """Weights, in the type the model computes in, that are handed out in each update."""
    gathered: float = 0.0
    """Weights that are gathered for each micro-batch."""

    def bytes(self, micro_batches: int, width: int, devices: int) -> float:
        """What a device sends in an update of so many micro-batches, among `devices` that share a copy of the model.

        Of each tensor that meets, (N - 1) / N are another device's.
        """
        sums = self.summed_once + micro_batches * self.summed
        gathers = self.gathered_once + micro_batches * self.gathered
        return (EXACT * sums + width * gathers) * (devices - 1) / devices


@dataclass(frozen=True)
class Footprint:
    """Device memory of one model on each process, in bytes, and how its processes share it.

    Weights and optimizer are the residents of `memory.RESIDENCY`, in the phases of that table where `moves` allows it;
    gradients and what is gathered are there in phase train, the latter in score too.
    """

    weights: int
    optimizer: int = 0
    """What the optimizer keeps, and float32 weights beside those that compute."""
    gradients: int = 0
    gathered: int = 0
    """Weights of other processes and their gradients, while blocks compute."""
    gradients_stay: bool = False
    """Whether the gradients' memory is kept from one update to the next, so in all phases."""
    sharded: bool = False
    """Whether a process has pieces of weights only, so that an engine in it needs weights of its own."""
    moves: bool = True
    """Whether residents that a phase does not need can be moved to host memory (strategy.offload)."""
    copies: int = 1
    """Copies of the model, each shared by processes / copies of them."""
    traffic: Traffic = Traffic()
    to_host: str = ""
    """The setting that would keep all of it in host memory, where there is one and it is not set."""
