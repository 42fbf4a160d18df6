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
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lightrft.config import DeepspeedConfig, OptimizerConfig, StrategyConfig
from lightrft.models.describe import without_weights
from lightrft.models.families import is_multimodal
from lightrft.models.logprobs import causal_lm
from lightrft.models.lora import check_whole, exact_parts
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.strategy.base import Root, Saved, need_processes
from lightrft.strategy.ema import follow
from lightrft.strategy.footprint import Footprint, Sizes
from lightrft.strategy.memory import Resident, Tensors
from lightrft.strategy.optimizer import (
    MOMENTS,
    Progress,
    check_shapes,
    learning,
)
from lightrft.strategy.optimizers import adamw, moments, need_adamw, set_steps, steps_taken
from lightrft.strategy.single import SingleFrozen
from lightrft.strategy.zero_engine import GatedAdamW, Layout, Partitioned, Replicated, joined, piece_of
from lightrft.strategy.zero_footprint import zero_footprint
from lightrft.utils.extras import install_command
from lightrft.utils.imports import require

T = TypeVar("T")

VERSION = "0.19."
"""Versions of DeepSpeed that are known: the steps of an update are taken one by one, below its `engine.step`, and may move in another version."""


class Zero:
    """The strategy for any number of processes; `strategy.backend` is zero1, zero2 or zero3."""

    def __init__(self, config: StrategyConfig, device: torch.device) -> None:
        """Called by all ranks. ValueError for settings that DeepSpeed cannot follow."""
        self.config, self.device, self.stage = config, device, _stage(config.backend)
        self.shards = self.stage == 3
        need_processes(config.backend)
        if config.offload and device.type != "cpu":
            raise ValueError(
                f"strategy.offload=true: strategy.backend={config.backend} does not move what a phase does not need. Set "
                "strategy.deepspeed.offload_optimizer=true, which keeps the optimizer in host memory all the time, or "
                "strategy.backend=fsdp."
            )
        self._deepspeed = _deepspeed(device)

    def trainable(self, source: Source, config: OptimizerConfig, total_updates: int) -> ZeroTrainable:
        """The optimizer changes float32 weights; the model computes in `source.dtype`."""
        self._refuse_media(source)
        if source.dtype is torch.float16:
            raise ValueError(
                f"model.dtype=float16 with strategy.backend={self.config.backend}: DeepSpeed would scale the loss by rules of its own. Set "
                "strategy.backend=fsdp, or model.dtype=bfloat16."
            )
        need_adamw(config, self.config.backend)
        check_whole(source.config.lora, self.config.backend)
        module = source.empty(self.device) if self.stage == 3 else source.full(self.device)
        for name in exact_parts(module):  # all weights of an engine are of one type
            causal_lm(module).get_submodule(name).to(source.dtype)
        named = dict(learning(module))
        shapes = {name: parameter.shape for name, parameter in named.items()}
        optimizer = cast(GatedAdamW, adamw(list(named.values()), config, GatedAdamW))
        settings = engine_settings(self.stage, self.config.deepspeed, source.dtype, self.device)
        if self.stage == 3:
            self._fill(module, source, settings)
        engine = self._engine(module, settings, optimizer)
        layout = (Partitioned if self.stage == 3 else Replicated)(engine, module, source.dtype)
        return ZeroTrainable(module, layout, optimizer, shapes, Progress(config, total_updates))

    def frozen(self, source: Source) -> SingleFrozen | Zero3Frozen:
        """Whole on every rank with zero1 and zero2, in pieces with zero3."""
        if self.stage < 3:
            return SingleFrozen(source.full(self.device).requires_grad_(False), self.device)
        self._refuse_media(source)
        module = source.empty(self.device).requires_grad_(False)
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        settings = engine_settings(3, self.config.deepspeed, source.dtype, self.device)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # only pieces to follow with
        self._fill(module, source, settings)
        return Zero3Frozen(module, self._engine(module, settings), shapes)

    @staticmethod
    def footprint(config: StrategyConfig, sizes: Sizes, processes: int, *, learns: bool) -> Footprint:
        """Bytes that each process holds under the ZeRO stage of `config.backend`."""
        return zero_footprint(_stage(config.backend), config.deepspeed, sizes, processes, learns=learns)

    def _engine(self, module: nn.Module, settings: dict[str, Any], optimizer: Any = None) -> Any:
        return self._deepspeed.initialize(model=Root(module), optimizer=optimizer, config=settings)[0]

    def _refuse_media(self, source: Source) -> None:
        if self.stage > 1 and is_multimodal(causal_lm(without_weights(source.config)).config):
            raise ValueError(
                f"strategy.backend={self.config.backend}: {source.config.path} reads media, and a rank whose responses have none "
                "would not call for the weights that others wait for together with it. Set strategy.backend=fsdp or zero1."
            )

    @torch.no_grad()
    def _fill(self, module: nn.Module, source: Source, settings: dict[str, Any]) -> None:
        """Gives a empty module its weights: the first rank reads one at a time, and each rank keeps its piece of it."""
        splitter = self._deepspeed.zero.Init(config_dict_or_path=settings)
        missing = source.missing(module)
        read = _reader(source, missing) if World.current().is_first else None
        names = {parameter: name for name, parameter in missing.items()}
        for parameter in module.parameters():
            name = names.get(parameter)
            if name is not None:
                whole = torch.empty(parameter.shape, dtype=parameter.dtype)
                if read is not None:
                    whole.copy_(read(name))
                parameter.data = whole
            splitter._convert_to_zero_parameters([parameter])


def _stage(backend: str) -> int:
    return int(backend[-1])


def _deepspeed(device: torch.device) -> Any:
    os.environ["DS_ACCELERATOR"] = device.type  # else it takes the first that it finds
    deepspeed: Any = require("deepspeed", "deepspeed", "take strategy.backend=fsdp")
    if not deepspeed.__version__.startswith(VERSION):
        raise RuntimeError(
            f"strategy.backend=zero1, zero2 and zero3 are written for DeepSpeed {VERSION}x and this is {deepspeed.__version__}: "
            f"{install_command('deepspeed')}, or take strategy.backend=fsdp."
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
        zero["stage3_param_persistence_threshold"] = config.param_persistence_threshold
        zero["stage3_max_live_parameters"] = config.max_live_parameters
        zero["stage3_max_reuse_distance"] = config.max_live_parameters
        if config.offload_param:
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

    def read(name: str) -> Tensor:
        files.expect(name, missing[name].shape)
        return files.whole(name)

    return read


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
        self._learning = dict(learning(module))
        for master in layout.masters():
            moments(optimizer, master)
        if isinstance(layout, Replicated):  # parameters know their moments from now on
            layout.engine.optimizer._lazy_init_hp_params_optimizer_state()
        layout.engine.set_gradient_accumulation_boundary(False)

    @property
    def scaling(self) -> None:
        """Nothing: float16 is refused."""
        return

    @property
    def version(self) -> int:
        """Optimizer steps the weights have seen."""
        return self._progress.version

    def compute(self, function: Callable[..., T], *args: Any) -> T:
        """function(module, *args) in the forward pass of DeepSpeed's engine."""
        return cast(T, self._layout.engine(function, *args))

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed makes a mean over ranks of what is to be a sum."""
        self._layout.engine.backward(loss * self._world.size)

    def gradient_norm(self) -> float:
        """Called by all ranks, once an update: no gradient can be added afterwards."""
        self._layout.settle()
        own = float(torch.nn.utils.get_total_norm(self._layout.gradients()))
        return float(float(self._world.sum(torch.tensor(own**2, dtype=torch.float64))) ** 0.5)

    def learning_rate(self) -> float:
        """Learning rate of the next update."""
        return self._progress.learning_rate()

    def step(self, norm: float) -> bool:
        """FloatingPointError after optimizer.max_bad_steps skipped updates in a row."""
        rate, limit = self.learning_rate(), self._progress.config.max_grad_norm
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
        """Full tensors under Hugging Face names, one at a time."""
        return self._layout.weights()

    def adapters_merged(self) -> AbstractContextManager[None]:
        """Inside, adapters are folded into the weights."""
        return self._layout.adapters_merged()

    @property
    def is_averaged(self) -> bool:
        """Never: AdamW keeps no average."""
        return False

    def averaged(self) -> AbstractContextManager[None]:
        """The weights as they are."""
        return nullcontext()

    def parts(self) -> dict[str, Resident]:
        """Nothing that can be moved: DeepSpeed keeps the tensors where they are."""
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
    def tensor_state(self) -> dict[str, Tensor]:
        """Called by all ranks; copies in host memory, each tensor on one rank."""
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

    def scalar_state(self) -> dict[str, Any]:
        """Version, schedule and number of steps taken; the same on all ranks."""
        steps = steps_taken(self._optimizer, self._layout.masters())
        return {**self._progress.state(), "step": steps, "optimizer": "adamw", "numbers": {}}

    @torch.no_grad()
    def load(self, saved: Saved, numbers: dict[str, Any]) -> None:
        """Every rank reads whole tensors, few at a time, and keeps its piece of each."""
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
        """function(module, *args) in the forward pass of DeepSpeed's engine."""
        return cast(T, self.engine(function, *args))

    def parts(self) -> dict[str, Resident]:
        """Nothing that can be moved: DeepSpeed keeps the tensors where they are."""
        pieces = self._pieces()
        first = next(iter(pieces.values()))
        return {"weights": Tensors(lambda: list(pieces.values()), str(first.device), moves=False)}

    def follow(self, weights: Iterator[tuple[str, Tensor]], share: float) -> None:
        """Called by all ranks."""
        own = self._pieces()
        follow(own, weights, share, self._exact, part=lambda n, whole: piece_of(whole, own[n].numel()))

    @torch.no_grad()
    def tensor_state(self) -> dict[str, Tensor]:
        """Called by all ranks; copies in host memory, each tensor on one rank."""
        world, found = World.current(), {}
        for index, (name, piece) in enumerate(self._pieces().items()):
            whole = joined(self._exact.get(name, piece), self.shapes[name])
            if index % world.size == world.rank:
                found[f"weights/{name}"] = whole.cpu()
        return found

    @torch.no_grad()
    def load(self, saved: Saved) -> None:
        """Takes this rank's pieces of the weights from a checkpoint, with a float32 copy where they are kept in less."""
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
