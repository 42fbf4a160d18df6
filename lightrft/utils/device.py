"""The device that this process uses, and all that differs from one kind to another; the only file that names or asks any."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist


def pick_device(setting: str) -> torch.device:
    """`auto` takes the accelerator that torch finds, else the CPU; of several the one with this process's $LOCAL_RANK.

    ValueError for a device that is not there.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if setting == "auto":
        return torch.device("cpu") if found is None else _own(found.type)
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise ValueError(
            f"strategy.device={setting}: no such device. Set auto, cpu, cuda, cuda:1, npu, xpu or mps."
        ) from None
    if device.type == "cpu":
        return device
    if found is None or found.type != device.type:
        have = "no accelerator" if found is None else found.type
        raise ValueError(
            f"strategy.device={setting}: torch finds {have} on this machine. Set strategy.device=auto."
        )
    return device if device.index is not None else _own(device.type)


def _own(kind: str) -> torch.device:
    """The accelerator of this process among those of its machine."""
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if count == 1:  # a scheduler that shows each process only its own
        return torch.device(kind, 0)
    if place >= count:
        raise ValueError(
            f"process {place} of this machine has no accelerator: torch finds {count}. Start at most {count} processes here."
        )
    return torch.device(kind, place)


def has_varlen_kernel(tensor: torch.Tensor) -> bool:
    """Whether torch's attention over sequences of different lengths in one call (torch's flash attention) takes such tensors."""
    halves = (torch.bfloat16, torch.float16)
    return tensor.device.type == "cuda" and tensor.dtype in halves  # NVIDIA, and AMD under the same name


def sent(values: Any, device: torch.device) -> torch.Tensor:
    """A tensor of these numbers on the device, on CUDA without waiting for it: whoever asks the device next finds them there."""
    tensor = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    if not can_lock_pages(device) or tensor.device.type != "cpu":
        return tensor.to(device)
    if not tensor.is_pinned():  # from other memory the copy would be waited for
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def can_lock_pages(device: torch.device) -> bool:
    """Whether the device copies from and to page-locked host memory without being waited for."""
    return device.type == "cuda"


class Copies:
    """Copies between host memory and a device, one after the other, beside what the device computes: a stream of its own on CUDA.

    On other devices a copy is made at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device) if can_lock_pages(device) else None
        self._stream = self._module.Stream(device) if self._module else None
        self._begun: Any = None
        self._spans: list[Callable[[], float]] = []

    def begin(self) -> None:
        """What is copied from now on sees all that the device was told before."""
        if self._stream is None:
            self._begun = time.perf_counter()
            return
        self._stream.wait_stream(self._module.current_stream(self._device))
        self._begun = self._stream.record_event(self._module.Event(enable_timing=True))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> Callable[[], None]:
        """Copies, from or to page-locked memory; gives what waits until that is done."""
        if self._stream is None:
            target.copy_(source)
            return lambda: None
        with self._module.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return self._stream.record_event().synchronize  # type: ignore[no-any-return]

    def end(self) -> None:
        """What the device is told from now on sees all that was copied."""
        if self._stream is None:
            spent = time.perf_counter() - self._begun
            self._spans.append(lambda: spent)
            return
        begun, ended = self._begun, self._stream.record_event(self._module.Event(enable_timing=True))

        def seconds() -> float:
            ended.synchronize()
            return float(begun.elapsed_time(ended)) / 1000

        self._spans.append(seconds)
        self._module.current_stream(self._device).wait_stream(self._stream)

    def spans(self) -> list[float]:
        """Seconds from each beginning to its end since this was last asked; waits for the last end."""
        found = [seconds() for seconds in self._spans]
        self._spans.clear()
        return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator, of the host, of torch or of an engine, found no room."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "out of memory" in str(error)
    )


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def has_wide_products(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices into float32 ones."""
    return device.type == "cuda"


def has_half_products(device: torch.device) -> bool:
    """Whether a CPU has instructions for products of bfloat16 numbers (AVX512-BF16 or AMX), which give bfloat16; without, they are slower
    than those of float32 (docs/benchmarks.md)."""
    return device.type == "cpu" and (
        torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def runs_triton(device: torch.device) -> bool:
    """Whether the device computes by kernels that are written in triton."""
    return device.type == "cuda"


def can_record(device: torch.device) -> bool:
    """Whether work on the device can be recorded and repeated as a whole (CUDA graphs)."""
    return device.type == "cuda"


def recorded(
    function: Callable[[], torch.Tensor], device: torch.device, pool: Any
) -> Callable[[], torch.Tensor]:
    """Does once what `function` does, and gives what repeats it: the same operations on the same memory, without Python between them.

    `pool` is where recordings that are never repeated at the same time share memory (`recording_pool`). Where nothing can be
    recorded it gives the function itself.
    """
    if not can_record(device):
        return function
    cuda, beside = torch.get_device_module(device), _beside(device)
    graph = cuda.CUDAGraph()
    beside.wait_stream(cuda.current_stream())
    with cuda.stream(beside):  # around both: a recording that fails does not leave its stream by itself
        function()  # what libraries set up at their first call is not to be recorded
        # Other threads have work on the device too, such as what watches over collectives.
        with cuda.graph(graph, pool=pool, stream=beside, capture_error_mode="thread_local"):
            result = function()
    cuda.current_stream().wait_stream(beside)

    def repeat() -> torch.Tensor:
        graph.replay()
        return result

    return repeat


@cache
def _beside(device: torch.device) -> Any:
    """The one stream on which recordings are made: libraries keep room of their own for each stream that they see."""
    return torch.get_device_module(device).Stream(device)


def recording_pool(device: torch.device) -> Any:
    """A memory pool for recordings of this device, for `recorded`; None where it cannot record."""
    return torch.get_device_module(device).graph_pool_handle() if can_record(device) else None


def accelerators() -> dict[str, str]:
    """Each accelerator of this machine with its memory, for people."""
    if not torch.accelerator.is_available():
        return {}
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    found: dict[str, str] = {}
    for place in range(torch.accelerator.device_count()):
        device = torch.device(kind.type, place)
        if kind.type == "mps":  # it shares the host's memory
            found[str(device)] = f"{available_bytes(device) / 2**30:.0f} GiB free"
            continue
        module = torch.get_device_module(device)
        free, total = module.mem_get_info(device)
        name = module.get_device_name(device)
        found[str(device)] = f"{name}, {free / 2**30:.0f} GiB free of {total / 2**30:.0f}"
    return found


def generator_state() -> torch.Tensor | None:
    """The state of this process's random generator on its accelerator; None without one."""
    if not torch.accelerator.is_available():
        return None
    state: torch.Tensor = _module().get_rng_state()
    return state


def restore_generator(state: torch.Tensor | None) -> None:
    """Takes `generator_state` back, where there is an accelerator."""
    if state is not None and torch.accelerator.is_available():
        _module().set_rng_state(state)


def _module() -> Any:
    return torch.get_device_module(torch.accelerator.current_accelerator())


def num_accelerators() -> int:
    """How many accelerators this machine has."""
    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def use(device: torch.device) -> None:
    """Makes it the one that torch computes on where none is named."""
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)


def collective_backend(device: torch.device) -> str:
    """What ranks exchange tensors with: gloo on the CPU, and what torch registers for an accelerator (nccl, hccl, xccl) beside."""
    on_device = dist.get_default_backend_for_device(device)
    return on_device if device.type == "cpu" or on_device == "gloo" else f"cpu:gloo,{device.type}:{on_device}"


def reuse_host_memory() -> None:
    """Tells glibc to keep freed blocks instead of returning them to the kernel at once.

    Activations of a few MB are allocated and freed thousands of times a step; each return costs page faults on the
    next use. Only for Linux with glibc; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 32 * 1024 * 1024)
    mallopt(trim_threshold, 512 * 1024 * 1024)


def release_memory(device: torch.device) -> None:
    """Gives freed blocks that an allocator still keeps back to the device or, on a CPU, to the kernel."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
    elif sys.platform.startswith("linux"):
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident_gib() -> float:
    """Host memory this process holds now, GiB."""
    return float(psutil.Process().memory_info().rss) / 2**30


def peak_gib() -> float:
    """Most host memory this process ever held, GiB."""
    if sys.platform == "linux":  # where getrusage would count that of the program that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def device_bytes(device: torch.device) -> int:
    """Memory allocated on the device now; of the process on a CPU."""
    if device.type == "cpu":
        return int(psutil.Process().memory_info().rss)
    return int(torch.accelerator.memory_allocated(device))


def most_device_bytes(device: torch.device) -> int:
    """Most memory that was allocated on the device since this was last asked; 0 for a CPU, which does not count it."""
    if device.type in ("cpu", "mps"):
        return 0
    most = int(torch.accelerator.max_memory_allocated(device))
    torch.accelerator.reset_peak_memory_stats(device)
    return most


def use_tf32(device: torch.device, wanted: bool) -> None:
    """Lets products of float32 matrices be made in TensorFloat-32. ValueError where nothing multiplies so."""
    if wanted and device.type != "cuda":
        raise ValueError(
            f"strategy.tf32=true: {device.type} devices multiply float32 matrices in float32 only. Set strategy.tf32=false."
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if wanted else "highest")


def available_bytes(device: torch.device) -> int:
    """Memory that is free on the device now, whoever holds the rest; of the host for a CPU, and where they share it."""
    if device.type in ("cpu", "mps"):
        return int(psutil.virtual_memory().available)
    free, _ = torch.get_device_module(device).mem_get_info(device)
    return int(free)
