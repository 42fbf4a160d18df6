"""What every kind of training run prepares before its parts: this process, and the state to go on from."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from lightrft.config import (
    Config,
    SFTConfig,
)
from lightrft.parallel.world import World
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.utils.device import pick_device, reuse_host_memory, use_tf32
from lightrft.utils.seeding import seed_everything

log = logging.getLogger("lightrft")


def prepare_process(config: Config | SFTConfig) -> None:
    """Seeds, threads and memory habits of this process."""
    if config.strategy.threads:
        torch.set_num_threads(config.strategy.threads)
    use_tf32(pick_device(config.strategy.device), config.strategy.tf32)
    reuse_host_memory()
    disable_progress_bar()  # transformers' own bars would tear the live picture
    seed_everything(config.seed)


def shared(option: str, number: int, world: World) -> None:
    """ValueError if the ranks cannot all have the same share of what an option counts."""
    if number % world.size:
        raise ValueError(
            f"{option}={number} cannot be shared by {world.size} processes. Set it to a multiple of {world.size}."
        )


def last_state(checkpoints: Checkpoints, command: str = "train") -> dict[str, Any] | None:
    """The state in the newest complete checkpoint; None for a run that was stopped before its first, to begin again."""
    found = checkpoints.latest()
    if found is not None:
        return checkpoints.load(found)
    if checkpoints.folder.exists() and any(checkpoints.folder.iterdir()):
        raise ValueError(
            f"no checkpoint in {checkpoints.folder} is complete, so there is nothing to go on from. Start again with "
            f"`lightrft {command} {checkpoints.run}/config.yaml`."
        )
    log.warning("the run was stopped before its first checkpoint and begins again")
    return None
