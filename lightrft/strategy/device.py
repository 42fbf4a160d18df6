"""Which device this process uses; the only file that asks."""

from __future__ import annotations

import os
import resource
import sys

import psutil
import torch


def pick_device(setting: str) -> torch.device:
    """`auto` takes the accelerator that torch finds, else the CPU. ValueError for a device that is not there."""
    if setting == "auto":
        if torch.accelerator.is_available():
            kind = torch.accelerator.current_accelerator()
            assert kind is not None
            return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cpu")
    try:
        device = torch.device(setting)
    except RuntimeError:
        raise ValueError(
            f"strategy.device={setting}: no such device. Set auto, cpu, cuda, cuda:1, npu, xpu or mps."
        ) from None
    if device.type != "cpu":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if found is None or found.type != device.type:
            have = "no accelerator" if found is None else found.type
            raise ValueError(
                f"strategy.device={setting}: torch finds {have} on this machine. Set strategy.device=auto."
            )
    return device


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def device_bytes(device: torch.device) -> int:
    """Memory allocated on the device now; of the process on a CPU."""
    if device.type == "cpu":
        return int(psutil.Process().memory_info().rss)
    return int(torch.accelerator.memory_allocated(device))


def available_bytes(device: torch.device) -> int:
    """Memory that is free on the device now, whoever holds the rest; of the host for a CPU, and where they share it."""
    if device.type in ("cpu", "mps"):
        return int(psutil.virtual_memory().available)
    free, _ = torch.get_device_module(device).mem_get_info(device)
    return int(free)
