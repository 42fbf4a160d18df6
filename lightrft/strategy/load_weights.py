"""Weights into a model that is already in pieces: each process reads the rows it holds, or is sent them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightrft.models.lora import Gather
from lightrft.models.source import Source
from lightrft.models.weights import Weights
from lightrft.strategy.base import Saved


@torch.no_grad()
def fill(module: nn.Module, source: Source) -> None:
    """Gives a empty module, sharded or not, its weights; called by all ranks.

    From safetensors files every rank reads its own rows. Where weights stand there under other names than in the model
    (older layouts that transformers converts), the first rank reads them all into host memory and sends one at a time.
    """
    missing = source.missing(module)
    files = source.weights(missing)
    if files is not None:
        for name, parameter in missing.items():
            _read(parameter, name, files)
    else:
        _send(missing, source)


def reader(module: nn.Module, source: Source, saved: Saved) -> Gather:
    """What gives each weight of a empty module whole, when it is asked for: from a checkpoint what was learned, from the model's
    own files the rest."""
    learned = {p: f"weights/{name}" for name, p in module.named_parameters() if p.requires_grad}
    own = {parameter: name for name, parameter in source.missing(module).items()}
    rest = [own[parameter] for parameter in own if parameter not in learned]
    files = source.weights(rest)
    whole = source.whole() if rest and files is None else {}

    def read(parameter: Tensor, dtype: torch.dtype) -> Tensor:
        assert isinstance(parameter, nn.Parameter)
        if parameter in learned:
            found = torch.empty(parameter.shape, dtype=torch.float32)
            saved.into({learned[parameter]: found})
        elif files is not None:
            found = files.whole(own[parameter])
        else:
            found = whole[own[parameter]]
        return found.to(dtype)

    return read


def rows(parameter: Tensor) -> tuple[Tensor, int, int]:
    """What this rank holds of a parameter, and which rows of the whole these are."""
    if not isinstance(parameter, DTensor):
        return parameter, 0, parameter.shape[0] if parameter.dim() else 1
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return parameter.to_local(), offset[0], offset[0] + shape[0]


def placed(local: Tensor, like: Tensor) -> Tensor:
    """`local` as what this rank holds of a tensor that lies over the ranks as `like` does."""
    if not isinstance(like, DTensor):
        return local
    return DTensor.from_local(
        local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def _read(parameter: nn.Parameter, name: str, files: Weights) -> None:
    files.expect(name, parameter.shape)
    mine, start, stop = rows(parameter)
    if stop > start:
        mine.copy_(files.rows(name, start, stop))


def _send(missing: Mapping[str, nn.Parameter], source: Source) -> None:
    several = dist.is_initialized() and dist.get_world_size() > 1
    first = not several or dist.get_rank() == 0
    whole = source.whole() if first else {}
    for name, parameter in missing.items():
        mine, start, stop = rows(parameter)
        tensor = whole.pop(name).to(parameter.dtype) if first else None
        if several:
            tensor = torch.empty(parameter.shape, dtype=parameter.dtype) if tensor is None else tensor
            dist.broadcast(tensor.contiguous() if first else tensor, 0)
        assert tensor is not None
        if stop > start:
            mine.copy_(tensor[start:stop] if tensor.dim() else tensor)
