"""What a model has learned, whole, whichever backend holds it."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor

from lightrft.parallel.world import World
from lightrft.strategy.base import Trainable


def learned(model: Trainable, world: World) -> dict[str, Tensor]:
    """The weights that learn, in float32 and host memory, by the names of the module's parameters; called by all ranks.

    For models with few of them, such as adapters: every rank holds all.
    """
    whole: dict[str, Tensor] = {}
    own: dict[str, Tensor] = {}
    for key, tensor in model.tensor_state().items():
        kind, _, name = key.partition("/")
        if kind != "weights":
            continue
        if isinstance(tensor, DTensor):
            whole[name] = tensor.full_tensor().cpu()
        else:
            own[name] = tensor.cpu()
    for found in world.gather(own):  # a rank may leave out what another one has
        whole |= found
    return whole
