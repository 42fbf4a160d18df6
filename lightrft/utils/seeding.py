"""Seeds: one number from many, and the state of every generator a process has."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import torch

from lightrft.utils.device import generator_state, restore_generator


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else (not on PYTHONHASHSEED, not on the machine)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_everything(seed: int) -> None:
    """Seeds Python's, torch's and numpy's global generators."""
    import numpy

    random.seed(seed)
    torch.manual_seed(seed)
    numpy.random.seed(seed % 2**32)


def generator_states() -> dict[str, Any]:
    """The state of the global generators."""
    import numpy

    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "numpy": numpy.random.get_state(),
        "accelerator": generator_state(),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Takes `generator_states` back."""
    import numpy

    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    numpy.random.set_state(states["numpy"])
    restore_generator(states["accelerator"])
