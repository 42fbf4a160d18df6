"""Devices and processes: where the model is held, and how it is shared out."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightrft.config.checks import refuse_idle
from lightrft.config.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class FsdpConfig:
    """Sharding by torch's FSDP2; only with strategy.backend=fsdp."""

    serves = ("fsdp",)

    reshard_after_forward: bool = True
    """Reshard a block after its forward pass and all-gather again for backward; false: less traffic, more memory."""
    offload: bool = False
    """Keep weights, gradients and optimizer in host memory; a block's weights come to the device when it computes."""
    replicas: int = 1
    """Copies of the model, each sharded over as many processes (hybrid sharding), e.g. one per node."""

    def __post_init__(self) -> None:
        check_ranges("strategy.fsdp", self)


@dataclass(frozen=True, kw_only=True)
class DeepspeedConfig:
    """DeepSpeed's ZeRO; only with strategy.backend=zero1, zero2 or zero3."""

    serves = ("zero2", "zero1", "zero3")
    sharding = "zero3"
    of_sharding = ("offload_param", "param_persistence_threshold", "max_live_parameters")

    offload_optimizer: bool = False
    """Keep optimizer and float32 weights in host memory, and update them there."""
    offload_param: bool = False
    """With zero3: keep the pieces of the weights in host memory too; a block's weights come to the device when it computes."""
    bucket_mib: int = 256
    """Maximum MiB of one reduce or all-gather of gradients or weights; each process holds a few of them."""
    param_persistence_threshold: int = 100_000
    """With zero3: a weight of fewer numbers (biases, norms) is whole on every process, which saves small messages."""
    max_live_parameters: int = 1_000_000_000
    """With zero3: maximum parameters kept unsharded at once (stage3_max_live_parameters); 0: none but those that compute."""

    def __post_init__(self) -> None:
        check_ranges("strategy.deepspeed", self)


ZERO = tuple(sorted(DeepspeedConfig.serves))
"""The backends of DeepSpeed."""
WHOLE = ("single", *(name for name in ZERO if name != DeepspeedConfig.sharding))
"""The backends that leave the whole model on each process."""


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Device, backend and processes of the training."""

    backend: str = "single"
    """single: one process. fsdp: any number of processes, each with a piece of the model. zero1, zero2, zero3: the same
    by DeepSpeed. Or the import path of a Strategy class."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, npu, xpu, mps."""
    threads: int = 0
    """CPU threads for torch; 0: torch's choice ($OMP_NUM_THREADS)."""
    timeout_seconds: float = 1800.0
    """Maximum time a process may wait in an all-reduce or another collective, or make no progress, before the run aborts and reports what it
    was waiting for."""
    offload: bool = False
    """Move residents that a phase does not need to host memory (accelerators; on CPU there is nothing to move)."""
    tf32: bool = False
    """On NVIDIA devices, multiply float32 matrices with 10 bits instead of 23 (TensorFloat-32), several times as fast and exact to
    1e-3; false: as they are. bfloat16 models multiply in bfloat16 either way."""
    peak_teraflops: float = 0.0
    """Rate at which a device multiplies matrices in the type of the model, 10^12 operations a second, which train/mfu is a share of;
    0: what is known of the device by its name."""
    sequence_parallel: int = 1
    """Processes that compute each micro-batch together, each a part of its tokens: for responses too long for one (Ulysses)."""
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)

    def __post_init__(self) -> None:
        check_ranges("strategy", self)
        because = f"strategy.backend={self.backend}"
        for name, section in (("deepspeed", self.deepspeed), ("fsdp", self.fsdp)):
            if self.backend not in section.serves:
                cure = f"set strategy.backend={section.serves[0]}"
                refuse_idle(f"strategy.{name}", section, because=because, cure=cure)
        if self.backend != self.deepspeed.sharding:
            names, cure = self.deepspeed.of_sharding, f"set strategy.backend={self.deepspeed.sharding}"
            refuse_idle("strategy.deepspeed", self.deepspeed, names, because=because, cure=cure)


def check_backend(config: StrategyConfig, processes: int) -> None:
    """ValueError for a backend that would let several processes learn each by itself."""
    if processes > 1 and config.backend == "single":
        raise ValueError(
            f"strategy.backend=single is for one process, and there are {processes}. Set --strategy.backend fsdp (or the layer fsdp)."
        )
