"""How an engine of DeepSpeed holds what learns: whole on every rank (ZeRO 1 and 2), or in pieces (ZeRO 3).

The steps of an update are taken one by one here, below `engine.step`, which would average and count by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightrft.models.lora import full_weights, merged_adapters, plain_state
from lightrft.parallel.world import World
from lightrft.utils.imports import require


class GatedAdamW(torch.optim.AdamW):
    """AdamW that takes a share of each gradient, or leaves out a step, in the middle of what DeepSpeed does around it."""

    share: float = 1.0
    """What is left of the gradient after clipping; 0: no step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002  # torch's signature
        """One update of what its groups hold now: DeepSpeed calls it for one piece after the other."""
        if self.share == 0:
            return
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.share != 1 and grads:
            torch._foreach_mul_(grads, self.share)
        super().step()


class Layout(Protocol):
    """How an engine of DeepSpeed holds what learns."""

    engine: Any

    def masters(self) -> list[Any]:
        """This rank's float32 weights, which the optimizer changes."""
        ...

    def settle(self) -> None:
        """Finishes the sum of gradients over ranks."""
        ...

    def gradients(self) -> list[Tensor]:
        """This rank's pieces of that sum; each number is on one rank."""
        ...

    def forget(self) -> None:
        """Leaves nothing of it behind: a weight that the next update does not touch must not find this gradient again."""
        ...

    def put(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        """Keeps this rank's piece of a weight (moment "weights") or of one of its moments."""
        ...

    def publish(self) -> None:
        """The model computes with the present float32 weights."""
        ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names, one at a time; called by all ranks."""
        ...

    def adapters_merged(self) -> AbstractContextManager[None]:
        """Inside, adapters are folded into the weights."""
        ...

    def held(self) -> list[Tensor]:
        """What this rank has of the weights that the model computes with."""
        ...


@dataclass
class Replicated:
    """ZeRO 1 and 2: every rank has the whole model, and the optimizer of a part of it."""

    engine: Any
    module: nn.Module
    dtype: torch.dtype

    def masters(self) -> list[Any]:
        """Flat float32 weights of this rank's part."""
        return [flat for group in self.engine.optimizer.optimizer.param_groups for flat in group["params"]]

    def settle(self) -> None:
        """Sums the gradient over ranks; a weight that had none takes part with zeros."""
        if self.engine.zero_optimization_stage() == 2:
            self.engine.optimizer.finalize_gradient_accumulation_boundary()
            return
        accumulates = self._accumulates()
        for parameter in self.module.parameters():
            # Such as a tower of media that no answer of this rank has; others wait for its share of the sum.
            if parameter.requires_grad and getattr(parameter, accumulates) is None:
                setattr(parameter, accumulates, torch.zeros_like(parameter, dtype=torch.float32))
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.allreduce_gradients()

    def _accumulates(self) -> str:
        """Where the gradients of a bfloat16 model are summed in float32 when the optimizer is in host memory."""
        return "grad_accum" if self._offloads() and self.dtype is torch.bfloat16 else "grad"

    def _offloads(self) -> bool:
        return bool(self.engine.zero_cpu_offload())

    def gradients(self) -> list[Tensor]:
        """This rank's pieces of the summed gradient."""
        zero = self.engine.optimizer
        if self._whole_gradients():
            found: list[Tensor] = zero.fp32_groups_gradient_flat_partition
            return found
        if self._offloads():
            return [flat.grad for flat in self.masters()]
        return [piece for group in zero.averaged_gradients.values() for piece in group]

    def _whole_gradients(self) -> bool:
        """Whether this is DeepSpeed's optimizer for bfloat16, which sums float32 gradients of all weights on every rank."""
        bfloat16 = self.dtype is torch.bfloat16
        return self.engine.zero_optimization_stage() == 1 and bfloat16 and not self._offloads()

    def forget(self) -> None:
        """Clears this rank's pieces of the gradient; a whole one DeepSpeed clears itself."""
        if self._whole_gradients():
            return
        forget_of(self.masters())
        for group in self.engine.optimizer.averaged_gradients:
            self.engine.optimizer.averaged_gradients[group] = None

    def put(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        """Keeps this rank's piece of a whole weight or moment."""
        fragments = require("deepspeed.utils", "deepspeed")
        if moment == "weights":
            fragments.safe_set_full_fp32_param(parameter, whole)
        else:
            fragments.safe_set_full_optimizer_state(parameter, whole, moment)

    def publish(self) -> None:
        """Copies the float32 weights into those that the model computes with."""
        self.engine.optimizer.update_lp_params()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors under Hugging Face names; each rank has them all."""
        yield from plain_state(self.module).items()

    def adapters_merged(self) -> AbstractContextManager[None]:
        """Inside, adapters are folded into the weights."""
        return merged_adapters(self.module)

    def held(self) -> list[Tensor]:
        """All parameters: every rank has the whole model."""
        return list(self.module.parameters())


@dataclass
class Partitioned:
    """ZeRO 3: every rank has a piece of each weight; a block's weights meet when it computes."""

    engine: Any
    module: nn.Module
    dtype: torch.dtype

    def masters(self) -> list[Any]:
        """Flat float32 weights of this rank's pieces."""
        found: list[Any] = self.engine.optimizer.fp32_partitioned_groups_flat
        return found

    def settle(self) -> None:
        """Finishes the sum of gradients over ranks."""
        self.engine.optimizer.finalize_gradient_accumulation_boundary()

    def gradients(self) -> list[Tensor]:
        """This rank's pieces of the summed gradient, in float32 from host memory where they are kept there."""
        if self.engine.zero_cpu_offload():
            return [flat.grad for flat in self.masters()]
        groups = self.engine.optimizer.averaged_gradients.values()
        return [piece for group in groups for piece in group]

    def forget(self) -> None:
        """Clears the gradient and the buffer it is summed in."""
        forget_of(self.masters())
        self.engine.optimizer.grad_partitions_flat_buffer.zero_()

    def put(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        """Cuts this rank's piece out of a whole weight or moment, and keeps it."""
        fragments = require("deepspeed.utils", "deepspeed")
        piece = piece_of(whole, cast(Any, parameter).ds_tensor.numel())
        if moment == "weights":
            fragments.safe_set_local_fp32_param(parameter, piece)
        else:
            fragments.safe_set_local_optimizer_state(parameter, piece, moment)

    def publish(self) -> None:
        """Copies the float32 weights into the model's pieces, and gathers those that every rank keeps whole."""
        zero = self.engine.optimizer
        for index in range(len(self.masters())):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors, adapters folded in."""
        return full_weights(self.module, gathered, self.dtype)

    def adapters_merged(self) -> AbstractContextManager[None]:
        """`weights` folds adapters in by itself."""
        return nullcontext()

    def held(self) -> list[Tensor]:
        """This rank's piece of each parameter."""
        return [cast(Any, parameter).ds_tensor for parameter in self.module.parameters()]


def forget_of(masters: list[Any]) -> None:
    """Clears gradients that stay in memory from one update to the next."""
    for master in masters:
        if master.grad is not None:
            master.grad.zero_()


def piece_of(whole: Tensor, length: int) -> Tensor:
    """This rank's piece of a tensor as ZeRO 3 cuts it: so many numbers of the flat tensor, zeros after its end."""
    flat, start = whole.reshape(-1), World.current().rank * length
    piece = flat[start : start + length].clone()
    return torch.nn.functional.pad(piece, (0, length - piece.numel()))


def joined(piece: Tensor, shape: torch.Size) -> Tensor:
    """The whole tensor of this shape from the ranks' pieces; called by all ranks."""
    pieces = [torch.empty_like(piece) for _ in range(World.current().size)]
    dist.all_gather(pieces, piece.contiguous())
    return torch.cat(pieces)[: shape.numel()].view(shape)


def gathered(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The whole of a parameter in `dtype`; called by all ranks."""
    partitioned = cast(Any, tensor)
    piece = partitioned.ds_tensor.detach().to(partitioned.device, dtype)
    return joined(piece, partitioned.ds_shape)
