"""Backends, engines and trainers by name, and what is known of them before they are made."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightrft.config import ZERO, OptimizerConfig, RolloutConfig, StrategyConfig
from lightrft.engines import footprint as engines
from lightrft.engines.base import MakeEngine
from lightrft.engines.denoise import denoiser
from lightrft.engines.lmdeploy import LmdeployEngine
from lightrft.engines.native import native_engine
from lightrft.engines.sglang import SglangEngine
from lightrft.engines.unmask import unmasker
from lightrft.engines.vllm import VllmEngine
from lightrft.engines.vllm_serve import serve
from lightrft.engines.vllm_server import VllmServerEngine
from lightrft.strategy.base import Strategy
from lightrft.strategy.deepspeed import Zero
from lightrft.strategy.footprint import Footprint, Sizes
from lightrft.strategy.fsdp import Fsdp, check_replicas
from lightrft.strategy.optimizers import check_pieces, need_adamw
from lightrft.strategy.single import Single
from lightrft.trainer.rl import RLTrainer
from lightrft.utils.imports import resolve

STRATEGIES: dict[str, Callable[[StrategyConfig, torch.device], Strategy]] = {
    "single": Single,
    "fsdp": Fsdp,
    **dict.fromkeys(ZERO, Zero),
}
OPTIMIZER_CHECKS: dict[str, Callable[[OptimizerConfig, str], None]] = {
    "fsdp": check_pieces,
    **dict.fromkeys(ZERO, need_adamw),
}
"""Backend -> what it raises for an optimizer that it cannot take."""
SHARED = "fsdp"
"""The backend to take where a model is too large for one process."""
ALONE = "single"
"""The backend of one process, which computes what any other computes on many."""


ENGINES: dict[str, MakeEngine] = {
    "native": native_engine,
    "denoise": denoiser,
    "unmask": unmasker,
    "vllm": VllmEngine,
    "vllm_server": VllmServerEngine,
    "sglang": SglangEngine,
    "lmdeploy": LmdeployEngine,
}
OWN = "native"
"""The engine of this package: the only one that samples with the actor's weights."""
OWN_LIMIT = f"rollout.{OWN}.max_sequences"
"""The setting that bounds what its cache takes."""
ENGINE_FOOTPRINTS: dict[str, engines.StateFootprint] = {
    "native": engines.native,
    "denoise": engines.shared,
    "unmask": engines.shared,
    "vllm": engines.vllm,
    "vllm_server": engines.remote,
    "sglang": engines.sglang,
    "lmdeploy": engines.lmdeploy,
}
SERVED, SERVE = "vllm_server", serve
"""The engine that asks servers, and what `lightrft serve` starts one with."""


TRAINERS: dict[str, type[RLTrainer]] = {"rl": RLTrainer}


def footprint(config: StrategyConfig, sizes: Sizes, processes: int, *, learns: bool = True) -> Footprint:
    """What `strategy.backend` holds of a model on each process. ValueError for a user's own that does not say."""
    backend = resolve(STRATEGIES, config.backend, "strategy backend")
    stated: Callable[..., Footprint] | None = getattr(backend, "footprint", None)
    if stated is None:
        raise ValueError(
            f"strategy.backend={config.backend}: what it holds is not known. Give it a static method `footprint` (see Strategy in "
            f"lightrft/strategy/base.py), or plan with {', '.join(list(STRATEGIES)[:-1])} or {list(STRATEGIES)[-1]}."
        )
    return stated(config, sizes, processes, learns=learns)


def engine_footprint(
    config: RolloutConfig, sizes: engines.EngineSizes, demand: engines.Demand
) -> engines.EngineFootprint:
    """What `rollout.engine` holds on each process; a user's own says so by an attribute `footprint`, or has a copy of the weights."""
    stated: engines.StateFootprint | None = ENGINE_FOOTPRINTS.get(config.engine)
    if stated is None:
        made = resolve(ENGINES, config.engine, "rollout engine")
        stated = getattr(made, "footprint", engines.copied)
    return stated(config, sizes, demand)


def check_processes(config: StrategyConfig, processes: int) -> None:
    """ValueError for settings of a backend that do not fit so many processes."""
    check_replicas(config.fsdp.replicas, processes)


def check_optimizer(config: StrategyConfig, optimizer: OptimizerConfig) -> None:
    """ValueError for an optimizer that the backend cannot take, as it raises it itself before weights load."""
    check = OPTIMIZER_CHECKS.get(config.backend)
    if check is not None:
        check(optimizer, config.backend)
