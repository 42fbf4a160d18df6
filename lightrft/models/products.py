"""Matrix products of the output head, in the model's own type where a device adds them up and gives them in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from lightrft.utils.device import has_half_products, has_wide_products

CHUNK_OF_CPU, CHUNK_OF_ACCELERATOR = 4_194_304, 67_108_864
"""Logits that exist at once if nothing else is asked for: on a CPU what its cache holds; an accelerator wants long products."""


def logits_at_once(asked: int, *, on_cpu: bool) -> int:
    """update.logits_per_chunk, where 0 leaves it to the kind of device."""
    return asked or (CHUNK_OF_CPU if on_cpu else CHUNK_OF_ACCELERATOR)


def multiplies_widely(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the device multiplies these bfloat16 matrices without a copy of them in float32, and gives float32.

    Products of two bfloat16 numbers are exact in float32, so such a product differs from one of float32 matrices by the order in
    which it is added up and no more. A CPU has no such product, and other accelerators were not tried.
    """
    return hidden.dtype == weight.dtype == torch.bfloat16 and has_wide_products(hidden.device)


def multiplies_halves(hidden: Tensor, weight: Tensor) -> bool:
    """Whether products of these bfloat16 matrices that may give bfloat16 are made as they are: on a CPU that is made for it."""
    return hidden.dtype == weight.dtype == torch.bfloat16 and has_half_products(hidden.device)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, (M, K) and (K, N) of bfloat16 numbers, as float32."""
    if has_wide_products(left.device):
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
