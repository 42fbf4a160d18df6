"""One section of options for each rollout engine; `serves` names the engines that read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.addresses import refuse_secrets
from lightrft.config.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class NativeEngineConfig:
    """The engine that samples with the actor's own weights."""

    serves = ("native",)
    longest = 0
    finds_stops_across_steps = True

    max_sequences: int = 256
    """Maximum concurrent sequences; the rest queue."""
    prefill_tokens: int = 2048
    """Most prompt tokens that enter in one pass of the model; a longer prompt enters alone."""
    pack_weights: bool = True
    """Copy the weights into a faster layout while generating on a CPU; costs their memory once more."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """Record what a CUDA device does in a decoding pass and repeat it (CUDA graphs), four times as fast for small models. auto: where
    device and model allow it; on: refuse models that do not; off: never."""

    def __post_init__(self) -> None:
        check_ranges("rollout.native", self)


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """vLLM in the trainer's process; only with rollout.engine=vllm."""

    serves = ("vllm", "vllm_server")

    max_num_seqs: int = 256
    """Maximum concurrent sequences."""
    max_model_len: int = 0
    """Maximum tokens of a prompt with its response, for which vLLM keeps room; 0: what the model was made for."""
    tensor_parallel_size: int = 1
    """Neighbouring processes that have one engine together, each a part of its weights and cache."""
    gpu_memory_utilization: float = 0.4
    """Share of an accelerator's memory for weights and cache together."""
    cache_gib: float = 1.0
    """GiB for the cache on a CPU."""
    enforce_eager: bool = False
    """Do not compile the model: a quicker start and a slower rollout."""
    sleep_level: Literal[1, 2] = 2
    """What it keeps in host memory between rollouts: 1: the weights, so that another rollout with the same ones needs no sync; 2: nothing."""

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response; 0: not set."""
        return self.max_model_len

    def __post_init__(self) -> None:
        check_ranges("rollout.vllm", self)


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Servers that generate the responses (`lightrft serve`), on other machines or this one; only with rollout.engine=vllm_server."""

    serves = ("vllm_server",)
    longest = 0

    urls: list[str] = field(default_factory=list)
    """Where they are, e.g. http://node7:8000; prompts are shared out among them, and each is given all weights at a sync."""
    wait_seconds: float = 120.0
    """Longest to wait for a server that does not answer yet, at the start and after it died."""
    timeout_seconds: float = 600.0
    """Longest time for one prompt with all its responses, or for one bucket of weights."""
    retries: int = 2
    """How often a prompt that failed is sent again, to another server if there is one."""
    requests: int = 64
    """Maximum concurrent requests."""
    bucket_mib: int = 256
    """Most MiB of weights in one message; a server holds that beside its own, the trainer one tensor."""
    key: str = ""
    """Environment variable that holds the servers' key (vLLM's --api-key); empty: none."""

    def __post_init__(self) -> None:
        check_ranges("rollout.server", self)
        for url in self.urls:
            refuse_secrets("rollout.server.urls", url, "rollout.server.key")


@dataclass(frozen=True, kw_only=True)
class SglangConfig:
    """SGLang in processes of its own beside the trainer; only with rollout.engine=sglang."""

    serves = ("sglang",)

    max_running_requests: int = 256
    """Maximum concurrent sequences."""
    context_length: int = 0
    """Maximum tokens of a prompt with its response; 0: what the model was made for."""
    mem_fraction_static: float = 0.4
    """Share of the device's memory for weights and cache together; of a CPU's only as much as max_total_tokens need."""
    max_total_tokens: int = 65536
    """Tokens for which there is room in the cache on a CPU."""
    bucket_mib: int = 256
    """Most MiB of weights in one message."""
    start_seconds: float = 1800.0
    """Longest that its start may take."""
    options: dict[str, str] = field(default_factory=dict)
    """Further arguments of SGLang's Engine by name, e.g. {attention_backend: fa3}."""

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response; 0: not set."""
        return self.context_length

    def __post_init__(self) -> None:
        check_ranges("rollout.sglang", self)


@dataclass(frozen=True, kw_only=True)
class LmdeployConfig:
    """LMDeploy's PyTorch engine beside the trainer; only with rollout.engine=lmdeploy."""

    serves = ("lmdeploy",)

    max_batch_size: int = 256
    """Maximum concurrent sequences."""
    session_len: int = 0
    """Maximum tokens of a prompt with its response; 0: what the model was made for."""
    cache_max_entry_count: float = 0.4
    """Share of the free memory of an accelerator for the cache."""
    bucket_mib: int = 256
    """Most MiB of weights in one message."""

    @property
    def longest(self) -> int:
        """Most tokens of a prompt with its response; 0: not set."""
        return self.session_len

    def __post_init__(self) -> None:
        check_ranges("rollout.lmdeploy", self)
