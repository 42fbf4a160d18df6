"""Backends, engines and trainers by name."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightrft.config import (
    ZERO,
    StrategyConfig,
)
from lightrft.engines.base import MakeEngine
from lightrft.engines.lmdeploy import LmdeployEngine
from lightrft.engines.native import native_engine
from lightrft.engines.sglang import SglangEngine
from lightrft.engines.vllm import VllmEngine
from lightrft.engines.vllm_server import VllmServerEngine
from lightrft.strategy.base import Strategy
from lightrft.strategy.deepspeed import Zero
from lightrft.strategy.fsdp import Fsdp
from lightrft.strategy.single import Single
from lightrft.trainer.rl import RLTrainer

STRATEGIES: dict[str, Callable[[StrategyConfig, torch.device], Strategy]] = {
    "single": Single,
    "fsdp": Fsdp,
    **dict.fromkeys(ZERO, Zero),
}


ENGINES: dict[str, MakeEngine] = {
    "native": native_engine,
    "vllm": VllmEngine,
    "vllm_server": VllmServerEngine,
    "sglang": SglangEngine,
    "lmdeploy": LmdeployEngine,
}


TRAINERS: dict[str, type[RLTrainer]] = {"rl": RLTrainer}
