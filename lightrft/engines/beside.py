"""Check that an engine can sample while the trainer learns (rollout.max_staleness): its weights and cache are not the trainer's."""

from __future__ import annotations

from typing import Any

import torch

from lightrft.config import RolloutConfig


def check_beside(config: RolloutConfig, make_engine: Any, device: torch.device) -> None:
    """ValueError if the engine is asked to sample while the trainer learns on `device`, and cannot.

    An engine of a user says that it can by `samples_beside = True` on what rollout.engine names. It then samples in a thread while other
    threads of its process compute, from weights that are its own.
    """
    if not config.max_staleness or config.samples_beside(device.type):
        return
    setting = f"rollout.max_staleness={config.max_staleness} with rollout.engine={config.engine}"
    if ":" in config.engine:
        if getattr(make_engine, "samples_beside", False):
            return
        raise ValueError(
            f"{setting}: this engine does not say that it can sample while the trainer learns. Set samples_beside = True on it if its weights "
            "are its own, or leave rollout.max_staleness out."
        )
    raise ValueError(
        f"{setting} on {device.type}: both would compute on one device, and each would wait for the other. Set rollout.engine={config.beside_names}, "
        "with servers on devices of their own, or leave rollout.max_staleness out."
    )
