"""Tensors that have a shape and no numbers yet: views of a single number with stride zero, at no memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def spread(dtype: torch.dtype, shape: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """A tensor of this shape that takes the memory of a single number."""
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


def is_spread(tensor: torch.Tensor) -> bool:
    """Whether a tensor of several numbers is such a view."""
    return tensor.numel() > 1 and not any(tensor.stride())
