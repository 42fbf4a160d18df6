"""The weights that a run began from, told from others: a checkpoint holds only what has learned."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import torch

from lightrft.config import ModelConfig
from lightrft.models.weights import Weights

ROUNDED = "nf4:"
"""Before the digest of a base whose matrices the run has rounded (model.lora.quantize_base)."""
MOST_READ = 512
"""Tensors of which a part is read; of a model with more, always the same ones."""


def base_digest(config: ModelConfig) -> str:
    """What tells the weights of model.path from others of the same shape: names, and the first row of many of them.

    Empty for a random model, and for one in an older format than safetensors: those are not told apart.
    """
    files = Weights.of(config)
    if files is None:
        return ""
    names = sorted(files.files)
    digest = hashlib.sha256("\n".join(names).encode())
    for name in random.Random(0).sample(names, min(MOST_READ, len(names))):
        row = files.rows(name, 0, 1).contiguous().reshape(-1)
        digest.update(row.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def needed_base(config: ModelConfig, *, compared: bool = False, checked: str = "") -> str:
    """Digest of the base for the checkpoints of a run that needs those weights again: for adapters, for what is frozen, or because it is
    `compared` with the model it began from; empty for one whose checkpoints hold all it needs.

    `checked` is the digest that `check_base` has found them to have, so that a resume reads them once.
    """
    if not (config.lora.rank or config.freeze or compared):
        return ""
    return checked or f"{_rounding(config)}{base_digest(config)}"


def _rounding(config: ModelConfig) -> str:
    return ROUNDED if config.lora.quantize_base == "nf4" else ""


def check_base(config: ModelConfig, expected: str, checkpoint: Path) -> None:
    """ValueError if the checkpoint belongs to other weights than those of model.path, or to weights that were rounded in another way; an
    empty digest belongs to any weights."""
    digest = expected.removeprefix(ROUNDED)
    before = "off" if digest == expected else "nf4"
    if config.lora.rank and before != config.lora.quantize_base:
        raise ValueError(
            f"model.lora.quantize_base={config.lora.quantize_base}: {checkpoint} was learned with model.lora.quantize_base={before}, and its "
            f"adapters belong to that base. Set model.lora.quantize_base={before}."
        )
    if not digest or base_digest(config) == digest:
        return
    raise ValueError(
        f"model.path={config.path}: these are not the weights that {checkpoint} was learned on, and it holds only what has "
        "changed (adapters, layers that are not frozen, no reference). Set model.path and model.revision to the model that the run "
        "began with."
    )
