"""DeepSpeed's ZeRO: processes share the optimizer (1), its gradients too (2), and the weights as well (3).

What DeepSpeed counts and averages is switched off: it takes a step when it is told to, of gradients that are sums. Its
pieces are flat, and end where they end: checkpoints get whole tensors, each from one rank.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightrft.config import DeepspeedConfig, OptimizerConfig, StrategyConfig
from lightrft.models.families import is_multimodal
from lightrft.models.load import full_weights, merged_adapters, plain_state, without_weights
from lightrft.models.logprobs import causal_lm
from lightrft.models.source import Source
from lightrft.strategy.base import Root, Saved
from lightrft.strategy.colocate import Resident, Tensors
from lightrft.strategy.optimizer import Progress, adamw, check_shapes, moments, set_steps, steps_taken
from lightrft.strategy.single import SingleFrozen
from lightrft.strategy.world import World
from lightrft.utils.imports import require

T = TypeVar("T")

VERSION = "0.19."
"""Of DeepSpeed: the steps of an update are taken one by one, below its `engine.step`, and may move in another version."""
MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero:
    """The strategy for any number of processes; `strategy.backend` is zero1, zero2 or zero3."""

    def __init__(self, config: StrategyConfig, device: torch.device) -> None:
        """Called by all ranks. ValueError for settings that DeepSpeed cannot follow."""
        self.config, self.device, self.stage = config, device, int(config.backend[-1])
        self.shards = self.stage == 3
        if not dist.is_initialized():
            raise ValueError(
                f"strategy.backend={config.backend} needs processes that know each other. Start with --processes N (or --gpus "
                "N), or by torchrun; for a single process take strategy.backend=single."
            )
        if config.offload and device.type != "cpu":
            raise ValueError(
                f"strategy.offload=true: strategy.backend={config.backend} does not move what a phase does not need. Set "
                "strategy.deepspeed.offload_optimizer=true, which keeps the optimizer in host memory all the time, or "
                "strategy.backend=fsdp."
            )
        self._deepspeed = _deepspeed(device)

    def trainable(self, source: Source, config: OptimizerConfig, total_updates: int) -> ZeroTrainable:
        """See Strategy. The optimizer changes float32 weights; the model computes in `source.dtype`."""
        self._refuse_media(source)
        module = source.hollow(self.device) if self.stage == 3 else source.full(self.device)
        for name in getattr(module, "exact", ()):  # all weights of an engine are of one type
            module.get_submodule(name).to(source.dtype)
        named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not named:
            raise ValueError("no parameter of the model is trainable.")
        shapes = {name: parameter.shape for name, parameter in named.items()}
        optimizer = cast(GatedAdamW, adamw(list(named.values()), config, GatedAdamW))
        settings = engine_settings(self.stage, self.config.deepspeed, source.dtype, self.device)
        if self.stage == 3:
            self._fill(module, source, settings)
        engine = self._engine(module, settings, optimizer)
        layout = (Partitioned if self.stage == 3 else Replicated)(engine, module, source.dtype)
        return ZeroTrainable(module, layout, optimizer, shapes, Progress(config, total_updates))

    def frozen(self, source: Source) -> SingleFrozen | Zero3Frozen:
        """See Strategy. Whole on every rank with zero1 and zero2, in pieces with zero3."""
        if self.stage < 3:
            return SingleFrozen(source.full(self.device).requires_grad_(False), self.device)
        self._refuse_media(source)
        module = source.hollow(self.device).requires_grad_(False)
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        settings = engine_settings(3, self.config.deepspeed, source.dtype, self.device)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # only pieces to follow with
        self._fill(module, source, settings)
        return Zero3Frozen(module, self._engine(module, settings), shapes)

    def _engine(self, module: nn.Module, settings: dict[str, Any], optimizer: Any = None) -> Any:
        return self._deepspeed.initialize(model=Root(module), optimizer=optimizer, config=settings)[0]

    def _refuse_media(self, source: Source) -> None:
        if self.stage > 1 and is_multimodal(causal_lm(without_weights(source.config)).config):
            raise ValueError(
                f"strategy.backend={self.config.backend}: {source.config.path} reads media, and a rank whose answers have none "
                "would not call for the weights that others wait for together with it. Set strategy.backend=fsdp or zero1."
            )

    @torch.no_grad()
    def _fill(self, module: nn.Module, source: Source, settings: dict[str, Any]) -> None:
        """Gives a hollow module its weights: the first rank reads one at a time, and each rank keeps its piece of it."""
        splitter = self._deepspeed.zero.Init(config_dict_or_path=settings)
        read = _reader(source, source.missing(module)) if World.current().is_first else None
        names = {parameter: name for name, parameter in source.missing(module).items()}
        for parameter in module.parameters():
            name = names.get(parameter)
            if name is not None:
                whole = torch.empty(parameter.shape, dtype=parameter.dtype)
                if read is not None:
                    whole.copy_(read(name))
                parameter.data = whole
            splitter._convert_to_zero_parameters([parameter])


def _deepspeed(device: torch.device) -> Any:
    os.environ["DS_ACCELERATOR"] = device.type  # else it takes the first that it finds
    deepspeed: Any = require("deepspeed", "deepspeed", "take strategy.backend=fsdp")
    if not deepspeed.__version__.startswith(VERSION):
        raise RuntimeError(
            f"strategy.backend=zero1, zero2 and zero3 are written for DeepSpeed {VERSION}x and this is {deepspeed.__version__}: "
            'pip install "lightrft[deepspeed]", or take strategy.backend=fsdp.'
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of every optimizer that is not its own
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)
    if device.type == "cpu":  # else it spends two minutes compiling a faster way between processes than gloo
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def engine_settings(
    stage: int, config: DeepspeedConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """DeepSpeed's own configuration."""
    bucket = config.bucket_mib * 2**20 // 4
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": stage == 3 and device.type != "cpu",
        "memory_efficient_linear": False,  # it would replace torch's linear for everybody
    }
    host = {"device": "cpu", "pin_memory": device.type != "cpu"}
    if config.offload_optimizer:
        zero["offload_optimizer"] = host
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket
        zero["stage3_param_persistence_threshold"] = config.keep_whole_below
        if config.offload_parameters:
            zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,  # means nothing here: how many there are is told by `settle`
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype is torch.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }


def _reader(source: Source, missing: Mapping[str, nn.Parameter]) -> Callable[[str], Tensor]:
    """What gives one weight of a checkpoint after the other."""
    files = source.weights(missing)
    if files is None:
        return source.whole().pop
    shapes = {name: tuple(parameter.shape) for name, parameter in missing.items()}

    def read(name: str) -> Tensor:
        if files.shape(name) != shapes[name]:
            raise ValueError(
                f"{files.files[name]}: {name} has shape {files.shape(name)}, and the model that config.json describes "
                f"{shapes[name]}. Do they belong together?"
            )
        return files.rows(name, 0, (*shapes[name], 1)[0])

    return read


class GatedAdamW(torch.optim.AdamW):
    """AdamW that takes a share of each gradient, or leaves out a step, in the middle of what DeepSpeed does around it."""

    share: float = 1.0
    """What is left of the gradient after clipping; 0: no step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
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
        """See Trainable."""
        ...

    def merged(self) -> AbstractContextManager[None]:
        """See Trainable."""
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
        """See Layout."""
        return [flat for group in self.engine.optimizer.optimizer.param_groups for flat in group["params"]]

    def settle(self) -> None:
        """See Layout."""
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
        """See Layout."""
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
        """See Layout."""
        if self._whole_gradients():
            return
        forget_of(self.masters())
        for group in self.engine.optimizer.averaged_gradients:
            self.engine.optimizer.averaged_gradients[group] = None

    def put(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        """See Layout."""
        fragments = require("deepspeed.utils", "deepspeed")
        if moment == "weights":
            fragments.safe_set_full_fp32_param(parameter, whole)
        else:
            fragments.safe_set_full_optimizer_state(parameter, whole, moment)

    def publish(self) -> None:
        """See Layout."""
        self.engine.optimizer.update_lp_params()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See Layout."""
        yield from plain_state(self.module).items()

    def merged(self) -> AbstractContextManager[None]:
        """See Layout."""
        return merged_adapters(self.module)

    def held(self) -> list[Tensor]:
        """See Layout."""
        return list(self.module.parameters())


@dataclass
class Partitioned:
    """ZeRO 3: every rank has a piece of each weight; a block's weights meet when it computes."""

    engine: Any
    module: nn.Module
    dtype: torch.dtype

    def masters(self) -> list[Any]:
        """See Layout."""
        found: list[Any] = self.engine.optimizer.fp32_partitioned_groups_flat
        return found

    def settle(self) -> None:
        """See Layout."""
        self.engine.optimizer.finalize_gradient_accumulation_boundary()

    def gradients(self) -> list[Tensor]:
        """See Layout."""
        if self.engine.zero_cpu_offload():
            return [flat.grad for flat in self.masters()]
        groups = self.engine.optimizer.averaged_gradients.values()
        return [piece for group in groups for piece in group]

    def forget(self) -> None:
        """See Layout."""
        forget_of(self.masters())
        self.engine.optimizer.grad_partitions_flat_buffer.zero_()

    def put(self, parameter: nn.Parameter, moment: str, whole: Tensor) -> None:
        """See Layout."""
        fragments = require("deepspeed.utils", "deepspeed")
        piece = piece_of(whole, cast(Any, parameter).ds_tensor.numel())
        if moment == "weights":
            fragments.safe_set_local_fp32_param(parameter, piece)
        else:
            fragments.safe_set_local_optimizer_state(parameter, piece, moment)

    def publish(self) -> None:
        """See Layout."""
        zero = self.engine.optimizer
        for index in range(len(self.masters())):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See Layout. Adapters folded in."""
        return full_weights(self.module, gathered, self.dtype)

    def merged(self) -> AbstractContextManager[None]:
        """See Layout. `weights` folds adapters in by itself."""
        return nullcontext()

    def held(self) -> list[Tensor]:
        """See Layout."""
        return [cast(Any, parameter).ds_tensor for parameter in self.module.parameters()]


class ZeroTrainable:
    """A model with AdamW in the hands of DeepSpeed."""

    def __init__(
        self,
        module: nn.Module,
        layout: Layout,
        optimizer: GatedAdamW,
        shapes: Mapping[str, torch.Size],
        progress: Progress,
    ) -> None:
        """`shapes`: of what learns, by name."""
        self.module, self._layout, self._optimizer = module, layout, optimizer
        self._shapes, self._progress, self._world = shapes, progress, World.current()
        self._learning = {n: p for n, p in module.named_parameters() if p.requires_grad}
        for master in layout.masters():
            moments(optimizer, master)
        if isinstance(layout, Replicated):  # parameters know their moments from now on
            layout.engine.optimizer._lazy_init_hp_params_optimizer_state()
        layout.engine.set_gradient_accumulation_boundary(False)

    @property
    def version(self) -> int:
        """See Trainable."""
        return self._progress.version

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """See Trainable."""
        return cast(T, self._layout.engine(function, *args))

    def backward(self, loss: Tensor) -> None:
        """See Trainable. DeepSpeed makes a mean over ranks of what is to be a sum."""
        self._layout.engine.backward(loss * self._world.size)

    def gradient_norm(self) -> float:
        """See Trainable. Called by all ranks, once an update: no gradient can be added afterwards."""
        self._layout.settle()
        own = float(torch.nn.utils.get_total_norm(self._layout.gradients()))
        return float(self._world.sum(torch.tensor(own**2, dtype=torch.float64))) ** 0.5

    def rate(self) -> float:
        """See Trainable."""
        return self._progress.rate()

    def step(self, norm: float) -> bool:
        """See Trainable. FloatingPointError after optimizer.max_bad_steps skipped updates in a row."""
        rate, limit = self.rate(), self._progress.config.clip_norm
        usable = self._progress.admits(norm)
        clipped = limit / norm if limit and norm > limit else 1.0
        self._optimizer.share = clipped if usable else 0.0
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        zero = self._layout.engine.optimizer
        zero.step()
        zero.zero_grad()
        self._layout.forget()
        self._layout.engine.set_gradient_accumulation_boundary(False)
        return usable

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """See Trainable."""
        return self._layout.weights()

    def merged(self) -> AbstractContextManager[None]:
        """See Trainable."""
        return self._layout.merged()

    def parts(self) -> dict[str, Resident]:
        """See Trainable. They stay where they are."""
        masters = self._layout.masters()
        optimizer = [*masters, *(moments(self._optimizer, m)[name] for m in masters for name in MOMENTS)]
        device = str(masters[0].device)
        return {
            "weights": Tensors(self._layout.held, device, moves=False),
            "optimizer": Tensors(
                lambda: [t for t in optimizer if str(t.device) == device], device, moves=False
            ),
        }

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """See Trainable. Called by all ranks; copies in host memory, each tensor on one rank."""
        fragments = require("deepspeed.utils", "deepspeed")
        found = {}
        for index, (name, parameter) in enumerate(self._learning.items()):
            for moment in ("weights", *MOMENTS):
                if moment == "weights":
                    whole = fragments.safe_get_full_fp32_param(parameter)
                else:
                    whole = fragments.safe_get_full_optimizer_state(parameter, moment)
                if index % self._world.size == self._world.rank:
                    found[f"{moment}/{name}"] = whole.cpu().clone()
        return found

    def numbers(self) -> dict[str, Any]:
        """See Trainable."""
        return {**self._progress.state(), "step": steps_taken(self._optimizer, self._layout.masters())}

    @torch.no_grad()
    def load(self, saved: Saved, numbers: dict[str, Any]) -> None:
        """See Trainable. Every rank reads whole tensors, few at a time, and keeps its piece of each."""
        kinds = ("weights", *MOMENTS)
        own = {f"{k}/{n}": torch.empty(s, device="meta") for n, s in self._shapes.items() for k in kinds}
        check_shapes(saved.shapes(), own)
        for names in batches(self._shapes):
            read = {f"{kind}/{name}": torch.empty(self._shapes[name]) for name in names for kind in kinds}
            saved.into(read)
            for key, whole in read.items():
                kind, _, name = key.partition("/")
                self._layout.put(self._learning[name], kind, whole)
        set_steps(self._optimizer, self._layout.masters(), numbers["step"])
        self._progress.load(numbers)
        self._layout.publish()


@dataclass
class Zero3Frozen:
    """A model that only answers, in pieces."""

    module: nn.Module
    engine: Any
    shapes: Mapping[str, torch.Size]
    _exact: dict[str, Tensor] = field(default_factory=dict)
    """This rank's pieces in float32 of a module of a smaller type that follows slowly: its own would lose small steps."""

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """See Frozen."""
        return cast(T, self.engine(function, *args))

    def parts(self) -> dict[str, Resident]:
        """See Frozen. They stay where they are."""
        pieces = self._pieces()
        first = next(iter(pieces.values()))
        return {"weights": Tensors(lambda: list(pieces.values()), str(first.device), moves=False)}

    @torch.no_grad()
    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """See Frozen. Called by all ranks."""
        own = self._pieces()
        for name, weight in weights:
            if name not in own:  # the second name of a tied weight, or no weight
                continue
            mine = own.pop(name)
            theirs = piece_of(weight, mine.numel())
            if share == 1:
                mine.copy_(theirs)
                self._exact.pop(name, None)
            elif mine.dtype is torch.float32:
                mine.lerp_(theirs.to(mine), share)
            else:
                exact = self._exact.setdefault(name, mine.float())
                mine.copy_(exact.lerp_(theirs.to(exact), share))
        if own:
            raise ValueError(f"the policy has no weight '{min(own)}', which the reference has")

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """See Frozen. Called by all ranks; copies in host memory, each tensor on one rank."""
        world, found = World.current(), {}
        for index, (name, piece) in enumerate(self._pieces().items()):
            whole = joined(self._exact.get(name, piece), self.shapes[name])
            if index % world.size == world.rank:
                found[f"weights/{name}"] = whole.cpu()
        return found

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        """See Frozen."""
        pieces = self._pieces()
        for names in batches(self.shapes):
            read = {f"weights/{name}": torch.empty(self.shapes[name]) for name in names}
            saved.into(read)
            for name in names:
                piece = pieces[name]
                exact = piece_of(read[f"weights/{name}"], piece.numel()).to(piece.device)
                piece.copy_(exact)
                if piece.dtype is not torch.float32:
                    self._exact[name] = exact

    def _pieces(self) -> dict[str, Tensor]:
        return {name: cast(Any, parameter).ds_tensor for name, parameter in self.module.named_parameters()}


def forget_of(masters: list[Any]) -> None:
    """Clears gradients that stay in memory from one update to the next."""
    for master in masters:
        if master.grad is not None:
            master.grad.zero_()


def batches(shapes: Mapping[str, torch.Size]) -> Iterator[list[str]]:
    """The names, as many at a time as together are no larger than the largest."""
    most, waiting, size = max(shape.numel() for shape in shapes.values()), cast(list[str], []), 0
    for name, shape in shapes.items():
        if waiting and size + shape.numel() > most:
            yield waiting
            waiting, size = [], 0
        waiting.append(name)
        size += shape.numel()
    yield waiting


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
