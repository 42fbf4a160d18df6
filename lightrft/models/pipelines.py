"""Diffusion pipelines as diffusers writes them: a table of the transformers we can read, and the parts of a folder that do not learn.

A pipeline is one row of FAMILIES: how its text becomes conditions, how a state, a time and conditions become its forward, and how
many positions that reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import ModelConfig
from lightrft.models.describe import PIPELINE, pipeline_folder
from lightrft.models.lora import add_adapters, check_targets
from lightrft.models.shards import Shards
from lightrft.models.source import Source
from lightrft.models.weights import LEARNS
from lightrft.models.weights import PIPELINE_WEIGHTS as WEIGHTS
from lightrft.utils.imports import require

OLDEST = (0, 42)
"""The oldest diffusers whose pipelines these rows were written against."""
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
FILE_BYTES = 10 * 10**9
"""The most bytes of a file of weights, as diffusers has it."""
WITHOUT = "without."
"""What the names of conditions begin with that say nothing, for guidance."""


@dataclass(frozen=True)
class Family:
    """How one class of denoising transformers is called."""

    pipeline: str
    """Class of the pipeline that reads its prompts."""
    conditions: Callable[[Any, str, int], dict[str, Tensor]]
    """Pipeline, text, most tokens of the long text encoder -> keywords of the forward, (1, ...) each; on the CPU."""
    forward: Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    """Transformer, states (T, C, H, W), times (T,) as the scheduler has them, conditions -> velocity (T, C, H, W)."""


def _sd3_conditions(pipe: Any, text: str, most: int) -> dict[str, Tensor]:
    found = pipe.encode_prompt(
        text,
        None,
        None,
        device=torch.device("cpu"),
        do_classifier_free_guidance=False,
        max_sequence_length=most,
    )
    return {"encoder_hidden_states": found[0], "pooled_projections": found[2]}


def _sd3_forward(module: nn.Module, x: Tensor, times: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = module(hidden_states=x, timestep=times, return_dict=False, **conditions)[0]
    return found


FAMILIES: dict[str, Family] = {
    "SD3Transformer2DModel": Family("StableDiffusion3Pipeline", _sd3_conditions, _sd3_forward),
}
"""Class of the transformer -> how it is called. Stable Diffusion 3 and 3.5 (Esser et al. 2024, https://arxiv.org/abs/2403.03206)."""


def library() -> Any:
    """The package diffusers, without its bars and what its import says of packages for other models. RuntimeError if it is not installed."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        diffusers: Any = require("diffusers", "diffusion")
        diffusers.utils.logging.disable_progress_bar()
        for part in (
            "FlowMatchEulerDiscreteScheduler",
            *FAMILIES,
            *(family.pipeline for family in FAMILIES.values()),
        ):
            getattr(diffusers, part)  # it imports when asked for
    finally:
        logging.set_verbosity(before)
    return diffusers


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's folder: what its files say, and the parts of it that do not learn."""

    config: ModelConfig

    @cached_property
    def folder(self) -> Path:
        """Where it is; one that is made here is made now."""
        return pipeline_folder(self.config)

    @cached_property
    def index(self) -> dict[str, Any]:
        """Component -> [library, class], as model_index.json has it."""
        return self._json(PIPELINE)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The settings of the transformer."""
        return self._json(f"{LEARNS}/config.json")

    @property
    def family(self) -> Family:
        """How the transformer is called."""
        return FAMILIES[self.shape["_class_name"]]

    def _json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return found

    def check(self) -> None:
        """ValueError naming the folder and the cure if it holds no pipeline that can learn here. Reads no weights."""
        told = f"model.path={self.config.path}: "
        for part in (LEARNS, "scheduler"):
            if not any(self.index.get(part) or ()) or not (self.folder / part).is_dir():
                raise ValueError(
                    f"{told}the pipeline has no {part}. Take a folder as DiffusionPipeline.save_pretrained writes it."
                )
        name = self.shape.get("_class_name")
        if name not in FAMILIES:
            raise ValueError(
                f"{told}its transformer is a {name}, and this version knows: {', '.join(FAMILIES)}."
            )
        scheduler = self.index["scheduler"][1]
        if scheduler not in SCHEDULERS:
            raise ValueError(
                f"{told}its scheduler is a {scheduler}, and its steps are known of: {', '.join(SCHEDULERS)}."
            )
        diffusers = library()
        version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
        if version < OLDEST:
            raise ValueError(
                f"{told}diffusers {diffusers.__version__} is older than {'.'.join(map(str, OLDEST))}. Try: pip install --upgrade diffusers"
            )

    @cached_property
    def scheduler(self) -> Any:
        """The noise schedule."""
        diffusers = library()
        return getattr(diffusers, self.index["scheduler"][1]).from_pretrained(
            self.folder, subfolder="scheduler"
        )

    @cached_property
    def encoders(self) -> Any:
        """The pipeline without what draws: its frozen text encoders, on the CPU, and a transformer of no weights that tells its sizes."""
        diffusers = library()
        kind = getattr(diffusers, self.family.pipeline)
        absent = {name for name, part in self.index.items() if isinstance(part, list) and not any(part)}
        given = {**dict.fromkeys({*absent, "vae"}), LEARNS: FlowSource(self.config, learns=False).empty()}
        return kind.from_pretrained(self.folder, dtype=torch.float32, **given)

    def vae(self, device: torch.device) -> Any:
        """What turns latents into pictures; None of a pipeline that draws pixels."""
        if not any(self.index.get("vae") or ()):
            return None
        diffusers = library()
        kind = getattr(diffusers, self.index["vae"][1])
        return kind.from_pretrained(self.folder, subfolder="vae").to(device).eval().requires_grad_(False)

    @property
    def scale(self) -> int:
        """Pixels to a number of the latent, each way."""
        if not any(self.index.get("vae") or ()):
            return 8  # what the pipelines of diffusers take where there is none
        return int(2 ** (len(self._json("vae/config.json")["block_out_channels"]) - 1))

    def write(
        self, weights: Iterable[tuple[str, Tensor]], folder: Path, *, file_bytes: int = FILE_BYTES
    ) -> None:
        """The folder with these weights of the transformer; everything else is copied byte for byte."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=_weights_of_transformer(self.folder))
        shards, held = Shards(folder / LEARNS, WEIGHTS.removesuffix(".safetensors")), dict[str, Tensor]()
        for name, weight in weights:
            if held and sum(w.nbytes for w in held.values()) + weight.nbytes > file_bytes:
                shards.write(held)
                held = {}
            held[name] = weight.detach().cpu().contiguous()
        shards.write(held)
        shards.close()


def _weights_of_transformer(top: Path) -> Callable[[str, list[str]], list[str]]:
    """For copytree: the old weights of the transformer stay behind."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder) == top / LEARNS
        return [name for name in names if inside and name != "config.json"]

    return ignored


@dataclass(frozen=True)
class FlowSource(Source):
    """The transformer of a pipeline's folder."""

    def full(self, device: torch.device | str = "cpu") -> nn.Module:
        """The transformer with all its weights."""
        folder = pipeline_folder(self.config)
        module = self._class().from_pretrained(folder, subfolder=LEARNS, dtype=self.dtype)
        return self._prepared(module.to(device))

    def empty(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """The transformer before its weights are read; buffers are real."""
        from accelerate import init_empty_weights

        from lightrft.models.lazy import empty

        kind = self._class()
        with init_empty_weights(include_buffers=False):
            module: nn.Module = kind.from_config(
                kind.load_config(pipeline_folder(self.config), subfolder=LEARNS)
            )
        empty(module, dtype or self.dtype, device)
        for inner in module.modules():
            for name, buffer in inner._buffers.items():
                inner._buffers[name] = None if buffer is None else buffer.to(device)
        return self._prepared(module)

    def whole(self) -> dict[str, Tensor]:
        """All weights by their names in a checkpoint, in host memory."""
        return {
            name: p.detach() for name, p in FlowSource(self.config, learns=False).full().named_parameters()
        }

    def _class(self) -> Any:
        name = Pipeline(self.config).shape["_class_name"]
        return getattr(library(), name)

    def _prepared(self, module: Any) -> nn.Module:
        if self.learns and self.config.gradient_checkpointing:
            module.enable_gradient_checkpointing()
        prepared: nn.Module = module.eval().requires_grad_(self.learns)
        return add_adapters(prepared, self.config.lora) if self.learns and self.config.lora.rank else prepared

    def check_adapters(self) -> None:
        """ValueError for targets of model.lora.targets that the transformer lacks. Reads no weights."""
        if self.config.lora.rank:
            check_targets(replace(self, learns=False).empty(), self.config.lora)
