"""What models beside the policy have in common: whose settings an error names, where they rest, that they are whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lightrft.config import Config
from lightrft.strategy.single import SingleFrozen


@contextmanager
def named(section: str, path: str = "") -> Iterator[None]:
    """Errors inside name the settings of this section instead of the policy's; `path`: what its model.path is called."""
    try:
        yield
    except ValueError as error:
        told = re.sub(r"\bmodel\.path\b", path or f"{section}.path", str(error))
        told = re.sub(r"(?<![\w.])model\.(revision|chat_template)\b", rf"{section}.\1", told)
        raise ValueError(told) from None


def resting(config: Config, device: torch.device) -> torch.device:
    """Where a model is that is not needed now."""
    return torch.device("cpu") if config.strategy.offload else device


def held_whole(module: nn.Module, config: Config, device: torch.device) -> SingleFrozen:
    """A model that every process has whole: ranks judge their own responses, each at its own pace."""
    return SingleFrozen(module, device, config.strategy.offload and device.type != "cpu")
