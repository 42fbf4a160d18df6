"""Memory plans: who is in device memory in which phase, for every kind of run."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from lightrft.engines.base import Engine, Sharing
from lightrft.strategy.base import Frozen, Trainable
from lightrft.strategy.memory import RESIDENCY, MemoryPlan, Phase, Resident, kind_of
from lightrft.utils.device import device_bytes, most_device_bytes, release_memory


def build_memory_plan(
    owners: Mapping[str, Trainable | Frozen | None],
    engine: Engine,
    judging: Mapping[str, Resident],
    device: torch.device,
    beside: bool = False,
) -> MemoryPlan:
    """The memory plan of a run with an engine: who is in device memory in which phase, by the table RESIDENCY. With `beside` the engine
    samples in all of them."""
    memory_plan = MemoryPlan(
        lambda: device_bytes(device), lambda: release_memory(device), most=lambda: most_device_bytes(device)
    )
    found: dict[str, Resident] = dict(judging)
    for owner, held in {**owners, "engine": engine}.items():
        found |= {
            f"{owner} {name}": part for name, part in (held.parts() if held is not None else {}).items()
        }
    samples_itself = isinstance(engine, Sharing) and engine.shares_weights
    for name, part in found.items():
        if beside and name.startswith("engine "):
            memory_plan.add(name, part, *(phase for phase in Phase if phase is not Phase.IDLE))
            continue
        shared = name in ("actor weights", "policy weights") and samples_itself
        memory_plan.add(
            name, part, *RESIDENCY.get(kind_of(name), (Phase.ROLLOUT,)), *([Phase.ROLLOUT] if shared else [])
        )
    return memory_plan


def build_sft_memory_plan(
    model: Trainable,
    device: torch.device,
    reference: Frozen | None = None,
    engine: Engine | None = None,
    readers: Mapping[str, Resident] = MappingProxyType({}),
) -> MemoryPlan:
    """The memory plan of a run that learns from given responses; held-out losses need no optimizer, an engine samples for people only, and `readers` read
    what is learned from before it is scored."""
    memory_plan = MemoryPlan(
        lambda: device_bytes(device), lambda: release_memory(device), most=lambda: most_device_bytes(device)
    )
    parts = model.parts()
    samples_itself = isinstance(engine, Sharing) and engine.shares_weights
    asked = [] if engine is None else [Phase.SYNC, *([Phase.ROLLOUT] if samples_itself else [])]
    memory_plan.add("weights", parts["weights"], Phase.TRAIN, Phase.SCORE, *asked)
    memory_plan.add("optimizer", parts["optimizer"], Phase.TRAIN)
    for name, part in (reference.parts() if reference is not None else {}).items():
        memory_plan.add(f"reference {name}", part, *RESIDENCY[f"reference {name}"])
    for name, part in (engine.parts() if engine is not None else {}).items():
        memory_plan.add(f"engine {name}", part, *RESIDENCY.get(f"engine {name}", (Phase.ROLLOUT,)))
    for name, part in readers.items():
        memory_plan.add(name, part, Phase.SCORE)
    return memory_plan
