"""FSDP2: each process holds a piece of every weight, its gradient and its moments; a block's weights meet when it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lightrft.config import OptimizerConfig, StrategyConfig
from lightrft.models.blocks import blocks, reads_media
from lightrft.models.lazy import remake
from lightrft.models.logprobs import causal_lm
from lightrft.models.lora import check_whole, exact_parts, full_weights
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.strategy.base import Root, Saved, need_processes
from lightrft.strategy.compat import sum_unused, touching
from lightrft.strategy.ema import follow
from lightrft.strategy.footprint import Footprint, Sizes
from lightrft.strategy.fsdp_footprint import fsdp_footprint
from lightrft.strategy.load_weights import fill, placed, rows
from lightrft.strategy.memory import Resident
from lightrft.strategy.optimizer import Learner, learning
from lightrft.strategy.optimizers import check_pieces
from lightrft.strategy.scaling import LossScale, loss_scale

T = TypeVar("T")


class Fsdp:
    """The strategy for any number of processes."""

    shards = True

    def __init__(self, config: StrategyConfig, device: torch.device) -> None:
        """Called by all ranks. ValueError for settings that do not fit the number of processes."""
        need_processes(config.backend)
        self.config, self.device = config, device
        self._mesh = _mesh(device, config.fsdp.replicas)

    def trainable(self, source: Source, config: OptimizerConfig, total_updates: int) -> FsdpTrainable:
        """The optimizer changes float32 weights; the model computes in `source.dtype`."""
        check_whole(source.config.lora, self.config.backend)
        check_pieces(config, self.config.backend)
        exact = torch.promote_types(source.dtype, torch.float32)
        module, root = self._sharded(source, exact)
        return FsdpTrainable(module, root, config, total_updates, source.dtype, self._moves())

    def frozen(self, source: Source) -> FsdpFrozen:
        """A sharded model whose weights no gradient changes."""
        module, root = self._sharded(source, source.dtype)
        return FsdpFrozen(module, root, self._moves())

    @staticmethod
    def footprint(config: StrategyConfig, sizes: Sizes, processes: int, *, learns: bool) -> Footprint:
        """Bytes that each process holds of a model in pieces."""
        return fsdp_footprint(config.fsdp, sizes, processes, learns=learns)

    def _sharded(self, source: Source, held_in: torch.dtype) -> tuple[nn.Module, FSDPModule]:
        module = source.empty(self.device, held_in)
        missing = {id(parameter) for parameter in source.missing(module).values()}

        def on_meta(parameter: nn.Parameter) -> Tensor | None:
            """What never learns is held in the type it computes in: no small step of an optimizer can be lost."""
            kept = held_in if parameter.requires_grad else source.dtype
            if id(parameter) not in missing:
                return None
            return torch.empty(parameter.shape, dtype=kept, device="meta")

        remake(module, on_meta)
        root = shard(
            Root(module),
            self._mesh,
            compute_in=source.dtype,
            held_in=held_in,
            reshard=self.config.fsdp.reshard_after_forward,
            offload=self.config.fsdp.offload,
        )
        home = torch.device("cpu") if self.config.fsdp.offload else self.device
        root._apply(lambda t: torch.empty_like(t, device=home) if t.is_meta else t)
        fill(module, source)
        return module, root

    def _moves(self) -> bool:
        return self.config.offload and not self.config.fsdp.offload and self.device.type != "cpu"


def check_replicas(replicas: int, size: int) -> None:
    """ValueError if so many copies of a model cannot be shared out over `size` processes."""
    if size % replicas:
        raise ValueError(
            f"strategy.fsdp.replicas={replicas} does not divide the {size} processes. Set it to a divisor of {size}."
        )


def _mesh(device: torch.device, replicas: int) -> DeviceMesh:
    size = dist.get_world_size()
    check_replicas(replicas, size)
    if replicas == 1:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    shape = (replicas, size // replicas)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    for group in mesh.get_all_groups():
        World.current().limit(group)
    return mesh


def shard(
    root: Root,
    mesh: DeviceMesh,
    *,
    compute_in: torch.dtype,
    held_in: torch.dtype,
    reshard: bool,
    offload: bool,
) -> FSDPModule:
    """Shards every block of the language part by itself and the rest, towers of media among it, as one more piece.

    So a rank whose answers have no picture calls for the same pieces in the same order as one whose answers have.
    """
    options: dict[str, Any] = {"mesh": mesh}
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    mixed = MixedPrecisionPolicy(compute_in, held_in, cast_forward_inputs=False)
    policy = exact if compute_in == held_in else mixed
    for block in blocks(root.model):
        fully_shard(block, mp_policy=policy, reshard_after_forward=reshard, **options)
    for name in exact_parts(root.model):
        fully_shard(causal_lm(root.model).get_submodule(name), mp_policy=exact, **options)
    fully_shard(root, mp_policy=policy, reshard_after_forward=False, **options)
    whole = cast(FSDPModule, root)
    sum_unused(whole)
    for part in root.modules():
        if isinstance(part, FSDPModule):  # gradients are summed: the losses carry weights of the whole batch
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it sums
    return whole


def computed(root: FSDPModule, function: Callable[..., T], *args: Any) -> T:
    """function(model, *args). The backward pass leaves pieces behind; where there is none to come, they are left here."""
    result = cast(T, cast(Any, root)(function, *args))
    if not torch.is_grad_enabled():
        for part in cast(nn.Module, root).modules():
            if isinstance(part, FSDPModule):
                part.reshard()
    return result


class FsdpTrainable:
    """A sharded module with AdamW over its pieces."""

    def __init__(
        self,
        module: nn.Module,
        root: FSDPModule,
        config: OptimizerConfig,
        total_updates: int,
        dtype: torch.dtype,
        moves: bool,
    ) -> None:
        self.module, self._root, self._dtype, self._moves = module, root, dtype, moves
        named = learning(module)
        inside = {p for block in blocks(module) for p in block.parameters()}
        sees = reads_media(module)
        self._may_rest = [p for n, p in named if sees and p not in inside and ".lora_" not in n]
        self._learner = Learner(named, config, total_updates, loss_scale(dtype))

    @property
    def scaling(self) -> LossScale | None:
        """What scales the loss, of a model that computes in float16; the same on all ranks, as the norm is."""
        return self._learner.scaling

    @property
    def version(self) -> int:
        """Optimizer steps the weights have seen."""
        return self._learner.progress.version

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(module, *args) with the weights gathered block by block."""
        return computed(self._root, partial(touching, function) if self._may_rest else function, *args)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient; FSDP sums it over ranks."""
        self._learner.scaled(loss).backward()

    def gradient_norm(self) -> float:
        """Called by all ranks."""
        self._forget_unused()
        grads = self._learner.gradients()
        if not grads:
            return 0.0
        norm = torch.nn.utils.get_total_norm(grads)
        return self._learner.unscaled(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))

    def _forget_unused(self) -> None:
        """Leaves weights of towers that no rank has used without a gradient, as one process would: FSDP gives them zeros, which
        decay them. Elsewhere zeros are gradients: those of a new adapter's first matrix, for one."""
        if not self._may_rest:
            return
        used = torch.stack([_local(p.grad).any() if p.grad is not None else _no(p) for p in self._may_rest])
        counts = used.to(torch.int32)
        dist.all_reduce(counts)
        for parameter, count in zip(self._may_rest, counts.tolist(), strict=True):
            if not count:
                parameter.grad = None

    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return self._learner.progress.learning_rate()

    def step(self, norm: float) -> bool:
        """FloatingPointError after optimizer.max_bad_steps skipped updates in a row."""
        return self._learner.step(norm)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors in the type the model computes in, adapters folded in."""
        return full_weights(self.module, gathered, self._dtype)

    def adapters_merged(self) -> AbstractContextManager[None]:
        """`weights` folds adapters in by itself."""
        return nullcontext()

    @property
    def is_averaged(self) -> bool:
        """Whether it has the optimizer's average now."""
        return self._learner.is_averaged

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are the average of an optimizer that keeps one."""
        return self._learner.averaged()

    def parts(self) -> dict[str, Resident]:
        """This rank's pieces of the weights and of the optimizer's state, as residents."""
        return {
            "weights": Pieces(self._root, self._moves),
            "optimizer": Moments(self._learner.optimizer, self._learner.parameters, self._moves),
        }

    def tensor_state(self) -> dict[str, Tensor]:
        """The pieces of this rank."""
        return self._learner.tensor_state()

    def scalar_state(self) -> dict[str, Any]:
        """Version, schedule and number of steps taken; the same on all ranks."""
        return self._learner.scalar_state()

    def load(self, saved: Saved, numbers: dict[str, Any]) -> None:
        """Takes weights, moments and numbers back from a checkpoint, each rank its pieces."""
        self._learner.load(saved, numbers)


@dataclass
class FsdpFrozen:
    """A sharded module that only answers."""

    module: nn.Module
    root: FSDPModule
    moves: bool = False
    _exact: dict[str, Tensor] = field(default_factory=dict)
    """This rank's rows in float32 of a module of a smaller type that follows slowly: its own would lose small steps."""

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(module, *args) with the weights gathered block by block."""
        return computed(self.root, function, *args)

    def parts(self) -> dict[str, Resident]:
        """This rank's pieces of the weights, as a resident."""
        return {"weights": Pieces(self.root, self.moves)}

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """Called by all ranks."""
        held = {name: rows(p) for name, p in self.module.named_parameters()}

        def part(name: str, whole: Tensor) -> Tensor:
            _, start, stop = held[name]
            return whole[start:stop] if whole.dim() else whole

        own = {name: mine for name, (mine, _, _) in held.items()}
        follow(own, weights, share, self._exact, part=part)

    def tensor_state(self) -> dict[str, Tensor]:
        """The pieces of this rank."""
        return {f"weights/{name}": self._precise(name, p) for name, p in self.module.named_parameters()}

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        """Takes this rank's pieces of the weights from a checkpoint, with a float32 copy where they are kept in less."""
        for name, parameter in self.module.named_parameters():
            exact = parameter.detach().float()
            saved.into({f"weights/{name}": exact})
            mine, found = rows(parameter)[0], rows(exact)[0]
            mine.copy_(found)
            if mine.dtype is not torch.float32:
                self._exact[name] = found

    def _precise(self, name: str, parameter: nn.Parameter) -> Tensor:
        """A weight with its rows in float32 where those are kept."""
        if name not in self._exact:
            return parameter.detach()
        return placed(self._exact[name], parameter)


def gathered(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The whole of a sharded tensor in `dtype`; called by all ranks."""
    tensor = tensor.detach().to(dtype)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@dataclass
class Pieces:
    """This rank's pieces of a sharded module, as a resident."""

    root: FSDPModule
    moves: bool

    def onload(self) -> None:
        """Brings the pieces to their device."""
        self._move(_home(next(cast(nn.Module, self.root).parameters())))

    def offload(self) -> None:
        """Moves the pieces to host memory."""
        self._move("cpu")

    def nbytes(self) -> int:
        """Bytes of the pieces that this rank has."""
        return sum(_local(p).nbytes for p in cast(nn.Module, self.root).parameters())

    def _move(self, place: str) -> None:
        if self.moves:  # FSDP keeps views of its pieces, which it renews after Module.to
            cast(nn.Module, self.root).to(place)


@dataclass
class Moments:
    """An optimizer's state for the pieces of this rank, as a resident."""

    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    moves: bool

    def onload(self) -> None:
        """Brings the state to the device of the weights."""
        self._move(_home(self.parameters[0]))

    def offload(self) -> None:
        """Moves the state to host memory."""
        self._move("cpu")

    def nbytes(self) -> int:
        """The bytes that it will take once it exists."""
        return 2 * sum(_local(p).nbytes for p in self.parameters)

    def _move(self, place: str) -> None:
        if self.moves:
            for state in self.optimizer.state.values():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.dim():
                        state[name] = value.to(place)


def _home(parameter: Tensor) -> str:
    """The kind of device it computes on, wherever it is now."""
    return parameter.device_mesh.device_type if isinstance(parameter, DTensor) else parameter.device.type


def _no(parameter: nn.Parameter) -> Tensor:
    return torch.zeros((), dtype=torch.bool, device=_local(parameter).device)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
