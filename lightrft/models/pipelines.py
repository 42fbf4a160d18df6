"""Diffusion pipelines as diffusers writes them: the network that learns, and the parts of a folder that do not.

What differs between them stands in two tables: FAMILIES (models/denoisers.py) of networks, LADDERS (models/ladders.py) of schedulers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import DenoiseConfig, ModelConfig
from lightrft.models.complete import check_files
from lightrft.models.denoisers import FAMILIES, Asked, Family
from lightrft.models.describe import PIPELINE, as_object, learned_part, pipeline_folder
from lightrft.models.ladders import LADDERS, Ladder
from lightrft.models.lora import add_adapters, check_targets
from lightrft.models.shards import Shards
from lightrft.models.source import Source
from lightrft.models.weights import PIPELINE_WEIGHTS as WEIGHTS
from lightrft.utils.imports import require

OLDEST = (0, 42)
"""The oldest diffusers whose pipelines these rows were written against."""
FILE_BYTES = 10 * 10**9
"""The most bytes of a file of weights, as diffusers has it."""
WITHOUT = "without."
"""What the names of conditions begin with that say nothing, for guidance."""
ALONE = {
    "transformer_2": "a second network for other levels of noise, and one learns here. Take a pipeline of one, as Wan 2.1",
    "expand_timesteps": "which gives each position a time of its own. Take a pipeline without, as Wan 2.1",
}
"""What no pipeline may have -> why not, and the cure."""


def library(*parts: str) -> Any:
    """The package diffusers with `parts` of it imported, without its bars and what an import says of packages for other models.

    RuntimeError if it is not installed.
    """
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        diffusers: Any = require("diffusers", "diffusion")
        diffusers.utils.logging.disable_progress_bar()
        for part in parts:
            getattr(diffusers, part)  # it imports when asked for
    finally:
        logging.set_verbosity(before)
    return diffusers


def library_class(name: str) -> Any:
    """A class of diffusers."""
    return getattr(library(name), name)


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
    def learns(self) -> str:
        """The part that learns."""
        return learned_part(self.folder)

    @cached_property
    def shape(self) -> dict[str, Any]:
        """The settings of the network."""
        return self._json(f"{self.learns}/config.json")

    @property
    def family(self) -> Family:
        """How the network is called."""
        return FAMILIES[self.shape["_class_name"]]

    @property
    def ladder(self) -> Ladder:
        """How the scheduler steps."""
        return LADDERS[self.index["scheduler"][1]]

    def guides_twice(self, guidance: float) -> bool:
        """Whether so much guidance takes a second prediction, without the text: not where the network is told of it."""
        return guidance != 1 and not self.embeds_guidance

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network is told how much it is guided."""
        return bool(self.shape.get("guidance_embeds"))

    def asked(self, text: str | None, options: DenoiseConfig) -> dict[str, Tensor]:
        """Conditions of a text, (1, ...) each; None: of none at all."""
        most, size = options.max_text_tokens, self.size(options)
        found = self.family.conditions(self.encoders, Asked(text, most, size))
        if self.embeds_guidance:
            found["guidance"] = torch.tensor([options.guidance])
        if self.guides_twice(options.guidance):
            nothing = self.family.conditions(self.encoders, Asked(None, most, size))
            found |= {WITHOUT + name: condition for name, condition in nothing.items()}
        return found

    def size(self, options: DenoiseConfig) -> tuple[int, int]:
        """Rows and columns of a picture in pixels."""
        rows, columns = (side * self.scale for side in self.family.sides(self.shape))
        return options.height or rows, options.width or columns

    def _json(self, name: str) -> dict[str, Any]:
        """What a file of the folder says. ValueError naming it if it cannot be read."""
        try:
            found = as_object(json.loads((self.folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.path={self.config.path}: {name} cannot be read ({error}). Is the download complete?"
            ) from error
        return found

    def part(self, name: str) -> dict[str, Any]:
        """The settings of a part; none of one that the pipeline lacks."""
        return self._json(f"{name}/config.json") if any(self.index.get(name) or ()) else {}

    def check_kind(self) -> None:
        """ValueError as `check`, as far as settings of its parts say; weights and words need not be there."""
        told = f"model.path={self.config.path}: "
        self._check_learner(told)
        self._check_kind(told)
        self._check_scheduler(told)

    def check(self) -> None:
        """ValueError naming the folder and the cure if it holds no pipeline that can learn here. Reads no weights."""
        told = f"model.path={self.config.path}: "
        self._check_learner(told)
        self._check_parts(told)
        self._check_kind(told)
        self._check_scheduler(told)
        check_files(self.folder, self.index, self.learns, told)
        diffusers = library()
        version = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
        if version < OLDEST:
            raise ValueError(
                f"{told}diffusers {diffusers.__version__} is older than {'.'.join(map(str, OLDEST))}. Try: pip install --upgrade diffusers"
            )

    def _check_learner(self, told: str) -> None:
        """What no pipeline is without is there."""
        for part in (self.learns, "scheduler"):
            if not any(self.index.get(part) or ()) or not (self.folder / part).is_dir():
                raise ValueError(
                    f"{told}the pipeline has no {part}. Take a folder as DiffusionPipeline.save_pretrained writes it."
                )

    def _check_parts(self, told: str) -> None:
        """What model_index.json names is there."""
        for part, said in self.index.items():
            needed = (
                part.startswith(("text_encoder", "tokenizer", "vae")) and isinstance(said, list) and any(said)
            )
            if needed and not (self.folder / part).is_dir():
                raise ValueError(
                    f"{told}model_index.json names {part}, and there is no such folder. Is the download complete?"
                )

    def _check_kind(self, told: str) -> None:
        """Network and pipeline are known."""
        name = self.shape.get("_class_name")
        if name not in FAMILIES:
            raise ValueError(
                f"{told}its {self.learns} is a {name}, and this version knows: {', '.join(FAMILIES)}."
            )
        kind = self.index.get("_class_name")
        if kind not in self.family.pipelines:
            raise ValueError(
                f"{told}it is a {kind}, and with a {name} draw from text alone: {', '.join(self.family.pipelines)}. Take such a folder."
            )
        for part, cure in ALONE.items():
            said = self.index.get(part)
            if any(said) if isinstance(said, list) else said:
                raise ValueError(f"{told}its model_index.json has {part}, {cure}.")

    def _check_scheduler(self, told: str) -> None:
        """The scheduler steps with what the network predicts."""
        scheduler, fits = self.index["scheduler"][1], self.family.scheduler
        if scheduler != fits:
            raise ValueError(
                f"{told}its scheduler is a {scheduler}, and the steps of a {self.shape['_class_name']} are known of a {fits}. Save the pipeline "
                "with one, made by from_config of the old one, and with its shift if it had one (flow_shift of Wan's)."
            )
        problem = self.ladder.problem(self._json("scheduler/scheduler_config.json"))
        if problem:
            raise ValueError(f"{told}its scheduler {problem}.")

    @cached_property
    def scheduler(self) -> Any:
        """The noise schedule."""
        kind = library_class(self.index["scheduler"][1])
        return kind.from_pretrained(self.folder, subfolder="scheduler")

    @cached_property
    def encoders(self) -> Any:
        """The pipeline without what draws: its frozen text encoders, on the CPU, and a network of no weights that tells its sizes."""
        kind = library_class(self.index["_class_name"])
        absent = {name for name, part in self.index.items() if isinstance(part, list) and not any(part)}
        idle = {*absent, *({"vae", "safety_checker", "feature_extractor", "image_encoder"} & set(self.index))}
        given = {**dict.fromkeys(idle), self.learns: FlowSource(self.config, learns=False).empty()}
        return kind.from_pretrained(self.folder, dtype=torch.float32, **given)

    @property
    def has_vae(self) -> bool:
        """Whether states are latents, and not pixels."""
        return any(self.index.get("vae") or ())

    def vae(self, device: torch.device) -> Any:
        """What turns latents into pictures; None of a pipeline that draws pixels."""
        if not self.has_vae:
            return None
        kind = library_class(self.index["vae"][1])
        return kind.from_pretrained(self.folder, subfolder="vae").to(device).eval().requires_grad_(False)

    @property
    def scale(self) -> int:
        """Pixels to a row of the latent; 8 where there is no VAE, as the pipelines of diffusers take it."""
        return self.family.scale(self._json("vae/config.json")) if self.has_vae else 8

    @property
    def frames(self) -> int:
        """Frames to a number of the latent; 0 of a pipeline that draws pictures."""
        if self.family.frames is None:
            return 0
        return self.family.frames(self._json("vae/config.json")) if self.has_vae else 4  # as in `scale`

    @property
    def beside(self) -> int:
        """Bytes that `write` copies."""
        copied = _old_weights(self.folder / self.learns)
        files = (f for f in self.folder.rglob("*") if f.is_file())
        return sum(f.stat().st_size for f in files if not copied(str(f.parent), [f.name]))

    def write(
        self, weights: Iterable[tuple[str, Tensor]], folder: Path, *, file_bytes: int = FILE_BYTES
    ) -> None:
        """The folder with these weights of the transformer; everything else is copied byte for byte."""
        shutil.copytree(
            self.folder, folder, dirs_exist_ok=True, ignore=_old_weights(self.folder / self.learns)
        )
        shards, held = Shards(folder / self.learns, WEIGHTS.removesuffix(".safetensors")), dict[str, Tensor]()
        for name, weight in weights:
            if held and sum(w.nbytes for w in held.values()) + weight.nbytes > file_bytes:
                shards.write(held)
                held = {}
            held[name] = weight.detach().cpu().contiguous()
        shards.write(held)
        shards.close()


def _old_weights(part: Path) -> Callable[[str, list[str]], list[str]]:
    """For copytree: the old weights of the part that learned stay behind."""

    def ignored(folder: str, names: list[str]) -> list[str]:
        inside = Path(folder) == part
        return [name for name in names if inside and name != "config.json"]

    return ignored


@dataclass(frozen=True)
class FlowSource(Source):
    """The network of a pipeline's folder: a transformer or a UNet."""

    def full(self, device: torch.device | str = "cpu") -> nn.Module:
        """The network with all its weights, of one type."""
        pipeline = Pipeline(self.config)
        module = self._class(pipeline).from_pretrained(
            pipeline.folder, subfolder=pipeline.learns, dtype=self.dtype
        )
        for (
            parameter
        ) in module.parameters():  # some classes keep parts in float32, and every process must compute alike
            parameter.data = parameter.data.to(self.dtype)
        return self._prepared(module.to(device))

    def empty(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """The network before its weights are read; buffers are real."""
        from accelerate import init_empty_weights

        from lightrft.models.lazy import empty

        pipeline = Pipeline(self.config)
        kind = self._class(pipeline)
        with init_empty_weights(include_buffers=False):
            module: nn.Module = kind.from_config(kind.load_config(pipeline.folder, subfolder=pipeline.learns))
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

    def _class(self, pipeline: Pipeline) -> Any:
        return library_class(pipeline.shape["_class_name"])

    def _prepared(self, module: Any) -> nn.Module:
        if self.learns and self.config.gradient_checkpointing:
            module.enable_gradient_checkpointing()
        prepared: nn.Module = module.eval().requires_grad_(self.learns)
        return add_adapters(prepared, self.config) if self.learns and self.config.lora.rank else prepared

    def check_adapters(self) -> None:
        """ValueError for targets of model.lora.targets that the transformer lacks. Reads no weights."""
        lora = self.config.lora
        if lora.quantize_base != "off":
            raise ValueError(
                f"model.lora.quantize_base={lora.quantize_base} with model.path={self.config.path}, a diffusion pipeline: only language models "
                "are rounded. Set model.lora.quantize_base=off."
            )
        if lora.rank:
            check_targets(replace(self, learns=False).empty(), self.config)
