"""LightRFT: reinforcement fine-tuning of language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightrft.api import dpo, evaluate, reward, sft, train
    from lightrft.config import Config
    from lightrft.rewards.base import each
    from lightrft.runs.reader import Run
    from lightrft.trainer.rl import RLTrainer
    from lightrft.types import Batch, Completion, Message, Prompt, Record, Sampling, Terms, Trajectory

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Completion",
    "Config",
    "Message",
    "Prompt",
    "RLTrainer",
    "Record",
    "Run",
    "Sampling",
    "Terms",
    "Trajectory",
    "dpo",
    "each",
    "evaluate",
    "reward",
    "sft",
    "train",
]

_HOMES = {
    "Config": "lightrft.config",
    "RLTrainer": "lightrft.trainer.rl",
    "Run": "lightrft.runs.reader",
    **dict.fromkeys(("dpo", "evaluate", "reward", "sft", "train"), "lightrft.api"),
    "each": "lightrft.rewards.base",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: `lightrft --help` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module 'lightrft' has no attribute '{name}'")
    return getattr(import_module(_HOMES.get(name, "lightrft.types")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
