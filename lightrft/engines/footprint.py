"""What an engine states of itself before it is made: device memory for weights and cache, and how many answers run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lightrft.config import RolloutConfig
from lightrft.engines.pages import ANSWER_PAGE, KERNEL_PAGE, PROMPT_PAGE
from lightrft.strategy.footprint import EXACT


class EngineSizes(Protocol):
    """Sizes of a model that an engine samples from, in numbers (not bytes) unless said."""

    @property
    def width(self) -> int:
        """Bytes of a number in the type the model computes in."""
        ...

    @property
    def weights(self) -> int:
        """All of them, adapters too."""
        ...

    @property
    def learned(self) -> int:
        """Weights that learn."""
        ...

    @property
    def plain(self) -> int:
        """Weights of the model without adapters: what an engine is given."""
        ...

    @property
    def linears(self) -> int:
        """Weights of the linear layers."""
        ...

    @property
    def cached(self) -> int:
        """Keys and values of one token in a cache, each."""
        ...


@dataclass(frozen=True)
class Demand:
    """What is asked of an engine on one process, and what there is."""

    prompt: int
    """Tokens of the longest prompt."""
    answer: int
    """Tokens of the longest answer."""
    processes: int
    on_cpu: bool
    device_bytes: int
    """Memory of the device."""
    sharded: bool = False
    """Whether the actor is in pieces, so that an engine cannot sample with its weights."""


@dataclass(frozen=True)
class EngineFootprint:
    """Device memory of an engine on each process, in bytes."""

    weights: int
    """Bytes of weights of its own."""
    cache: int
    packed: int = 0
    """A copy of the weights in another layout, there while answers are drawn."""
    shares_weights: bool = False
    """Whether it samples with the actor's own weights, which are then needed in phase rollout too."""
    most_running: int | None = None
    """Most answers that are drawn at a time; None: as many as it is asked for."""
    pair: int | None = None
    """Bytes of a number of a key and one of a value in its cache; None: both in the type the model computes in."""


StateFootprint = Callable[[RolloutConfig, EngineSizes, Demand], EngineFootprint]
"""What an engine has as `footprint`."""


def copied(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> EngineFootprint:  # noqa: ARG001  # as StateFootprint has it
    """An engine that says nothing of itself, of a user's file: it is taken to have a copy of the weights."""
    return EngineFootprint(sizes.width * sizes.plain, 0)


def remote(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> EngineFootprint:  # noqa: ARG001  # as StateFootprint has it
    """An engine on other devices."""
    return EngineFootprint(0, 0)


def shared(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> EngineFootprint:  # noqa: ARG001  # as StateFootprint has it
    """An engine without a cache that samples with the actor's weights, where these are whole."""
    return EngineFootprint(
        sizes.width * sizes.plain if demand.sharded else 0, 0, shares_weights=not demand.sharded
    )


def native(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> EngineFootprint:
    """Weights where the actor's are in pieces, and pages for the answers that run at a time and for their prompts."""
    weights = sizes.width * sizes.plain if demand.sharded else 0
    copies = 0
    if demand.on_cpu and config.native.pack_weights:
        copies = sizes.linears if sizes.learned == sizes.weights else sizes.plain
    return EngineFootprint(
        weights,
        paged_cache(config, sizes, demand),
        packed=sizes.width * copies,
        shares_weights=not demand.sharded,
        most_running=config.native.max_sequences,
        pair=native_pair(config, sizes),
    )


def paged_cache(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> int:
    """Most bytes of the native engine's cache, which takes whole pages."""
    asked = -(-config.prompts_per_step // demand.processes)
    running = min(asked * config.group_size, config.native.max_sequences)
    prompts = -(-running // config.group_size)
    by_kernel = config.native.attention_backend == "flash"
    of_prompt, of_answer = (KERNEL_PAGE, KERNEL_PAGE) if by_kernel else (PROMPT_PAGE, ANSWER_PAGE)
    tokens = running * _pages(demand.answer, of_answer) + prompts * _pages(demand.prompt, of_prompt)
    return tokens * sizes.cached * native_pair(config, sizes)


def native_pair(config: RolloutConfig, sizes: EngineSizes) -> int:
    """Bytes of a number of a key and one of a value in the native engine's cache, where keys are in float32 but for the kernel."""
    by_kernel = config.native.attention_backend == "flash"
    return (sizes.width if by_kernel else EXACT) + sizes.width


def vllm(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> EngineFootprint:
    """Weights shared out by tensor parallelism, and a cache that fills the rest of gpu_memory_utilization."""
    options = config.vllm
    weights = sizes.width * sizes.plain // options.tensor_parallel_size
    room = options.gpu_memory_utilization * demand.device_bytes - weights
    return _filled(weights, options.cache_gib * 2**30 if demand.on_cpu else room)


def sglang(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> EngineFootprint:
    """All weights, and a cache that fills the rest of mem_fraction_static; on a CPU that of max_total_tokens."""
    options, weights = config.sglang, sizes.width * sizes.plain
    tokens = options.max_total_tokens * sizes.cached * 2 * sizes.width
    room = options.mem_fraction_static * demand.device_bytes - weights
    return _filled(weights, tokens if demand.on_cpu else room)


def lmdeploy(config: RolloutConfig, sizes: EngineSizes, demand: Demand) -> EngineFootprint:
    """All weights, and a cache of a share of what they leave free."""
    weights = sizes.width * sizes.plain
    return _filled(weights, config.lmdeploy.cache_max_entry_count * (demand.device_bytes - weights))


def _filled(weights: int, room: float) -> EngineFootprint:
    return EngineFootprint(weights, max(0, int(room)))


def _pages(tokens: int, page: int) -> int:
    return -(-tokens // page) * page
