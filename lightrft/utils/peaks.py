"""How fast devices multiply matrices at most, by their names."""

from __future__ import annotations

import torch

DENSE_TERAFLOPS: dict[str, float] = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A40": 149.7,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "MI355X": 2516.6,
    "MI325X": 1307.4,
    "MI300X": 1307.4,
    "MI250X": 383.0,
}
"""Part of a device's name -> dense products in bfloat16, 10^12 operations a second, from the makers' data sheets. The first that fits
counts, so longer names come before what they begin with."""


def known_teraflops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The rate of a device for products in this type; None where it is not known: of the CPU, of other devices, and of float32."""
    if device.type == "cpu" or dtype.itemsize != 2:
        return None
    name = torch.get_device_module(device).get_device_name(device)
    return teraflops_of(name)


def teraflops_of(name: str) -> float | None:
    """The rate of the device with this name; None if it is none of ours."""
    return next((rate for part, rate in DENSE_TERAFLOPS.items() if part in name), None)
