"""From `ModelConfig` to a model and its processor, with errors that name the setting before any weight loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from lightrft.config import MediaConfig, ModelConfig
from lightrft.models.compiled import compile_layers
from lightrft.models.describe import (
    RANDOM,
    auto_class,
    is_tiny,
    model_folder,
    shaped,
    stored_shape,
    without_weights,
)
from lightrft.models.families import attention_of, is_multimodal
from lightrft.models.folder import NO_CODE, why
from lightrft.models.freezing import freeze
from lightrft.models.kernels import use_kernels
from lightrft.models.linear import use_fast_linear
from lightrft.models.logprobs import causal_lm
from lightrft.models.lora import add_adapters, check_targets, round_base
from lightrft.models.media import MediaEncoder
from lightrft.models.processor import PLAIN_TEMPLATE, Processor
from lightrft.models.tiny import tiny_reader
from lightrft.utils.imports import import_all
from lightrft.utils.paths import expanded


def load_processor(config: ModelConfig, media: MediaConfig | None = None) -> Processor:
    """Tokenizer, chat template and end tokens of the model, and what reads media for it if it can see or hear.

    `media` says how these are read.
    """
    import_all(config.imports)
    if is_tiny(config.path):
        reader = _tiny_reader(config.path)
        tokenizer = getattr(reader, "tokenizer", reader)
        if config.chat_template:
            reader.chat_template = _template(config.chat_template)
        encoder = None if reader is tokenizer else _encoder(config, reader, media)
        return Processor(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer), encoder)
    folder, model_config = model_folder(config), stored_shape(config)
    try:
        loader = media_processor() if is_multimodal(model_config) else AutoTokenizer
        reader = loader.from_pretrained(folder, revision=config.revision, **NO_CODE)
    except ImportError as error:
        raise ValueError(f"model.path={config.path}: {_missing(error)}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={config.path}: transformers cannot load its tokenizer: {why(error)}"
        ) from error
    if config.chat_template:
        reader.chat_template = _template(config.chat_template)
    tokenizer = reader.tokenizer if is_multimodal(model_config) else reader
    text = model_config.get_text_config()
    stops = (
        _ids(tokenizer.eos_token_id) | _ids(text.eos_token_id) | _generation_stops(folder, config.revision)
    )
    encoder = _encoder(config, reader, media) if is_multimodal(model_config) else None
    try:
        return Processor(tokenizer, stops, text.vocab_size, encoder)
    except ValueError as error:
        raise ValueError(f"model.path={config.path}: {error}") from None


def _tiny_reader(path: str) -> Any:
    """What reads for a tiny random model. ValueError if it needs a package that is not there."""
    try:
        return tiny_reader(path.removeprefix(RANDOM))
    except ImportError as error:
        raise ValueError(f"model.path={path}: {_missing(error)}") from error


def _missing(error: ImportError) -> str:
    """What a processor needs and does not find, on one line."""
    cure = "pip install torchvision, in the version that fits torch, or take a model without clips."
    advice = f" Try: {cure}" if "torchvision" in str(error).lower() else ""
    return f"its processor needs another package: {' '.join(str(error).split())}{advice}"


def media_processor() -> Any:
    """AutoProcessor, whose import loads torchvision where it is installed; text must run beside a broken one."""
    from transformers import AutoProcessor

    return AutoProcessor


def load_model(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    *,
    trainable: bool = True,
    rounded: bool = False,
) -> nn.Module:
    """The model in `model.dtype` on `device`, with packed attention; adapters, frozen parts and checkpointing if trainable.

    `rounded`: one that is not has the matrices of `model.lora.quantize_base` rounded too, as the trainable one does.
    """
    import_all(config.imports)
    if trainable and config.lora.rank:
        check_targets(without_weights(config), config)  # before weights are read
    dtype = getattr(torch, config.dtype)
    model: Any = _untrained(config, dtype) if config.path.startswith(RANDOM) else _pretrained(config, dtype)
    if trainable or rounded:
        round_base(model, config.lora)  # before the device has to hold all of it
    return prepared(model.to(device), config, trainable)


def prepared(model: Any, config: ModelConfig, trainable: bool) -> nn.Module:
    """The model ready for use: fast products, fused or compiled layers, and what learning needs if it is to learn.

    Matrices that `model.lora.quantize_base` rounds must be so already.
    """
    model = model.eval()
    use_fast_linear(model)
    use_kernels(model, config)
    model = _learning(model, config) if trainable else model.requires_grad_(False)
    if config.compile:
        compile_layers(model)
    return model  # type: ignore[no-any-return]


def _learning(model: Any, config: ModelConfig) -> Any:
    """The model with adapters, frozen parts and checkpointing."""
    freeze(model, config.freeze)
    model = add_adapters(model, config) if config.lora.rank else model
    if config.gradient_checkpointing:
        causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
        for place, layer in enumerate(layers):
            layer.gradient_checkpointing = place % config.checkpoint_every == 0
        if config.lora.rank:
            causal_lm(model).enable_input_require_grads()
        # transformers recomputes only in training mode; the models here have no dropout (see attention.py).
        model.train()
    return model


def save_words(processor: Processor, folder: Path) -> None:
    """Writes what a folder needs besides weights and config: tokenizer, template, and the tokens that end an answer."""
    stops = sorted(processor.stop_ids)
    GenerationConfig(
        eos_token_id=stops if len(stops) > 1 else stops[0], pad_token_id=processor.tokenizer.pad_token_id
    ).save_pretrained(folder)
    processor.save(folder)


def _encoder(config: ModelConfig, reader: Any, media: MediaConfig | None) -> MediaEncoder:
    return MediaEncoder(reader, without_weights(config), media or MediaConfig())


def _untrained(config: ModelConfig, dtype: torch.dtype) -> Any:
    """A model with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = shaped(config)
    # Not model.to: rotary frequencies stay float32, as in loaded models.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _pretrained(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The model with its weights. ValueError if they cannot be read, or are not all there: the rest would be random."""
    folder, shape = model_folder(config), stored_shape(config)
    try:
        loaded: Any = auto_class(shape).from_pretrained(
            folder,
            revision=config.revision,
            dtype=dtype,
            attn_implementation=attention_of(shape),
            output_loading_info=True,
            **NO_CODE,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"model.path={config.path}: transformers cannot load its weights: {why(error)}"
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"model.path={config.path}: its files lack {len(missing)} weights of the model, among them {missing[0]}, "
            "which would be left random. Is the download complete, and does config.json belong to the weights?"
        )
    broken = next((n for n, p in model.named_parameters() if not p.sum(dtype=torch.float64).isfinite()), None)
    if broken is not None:
        raise ValueError(
            f"model.path={config.path}: {broken} holds NaN or infinite numbers. Take an earlier save of the model."
        )
    return model


def _template(setting: str) -> str:
    if setting == "plain":
        return PLAIN_TEMPLATE
    file = expanded(setting, "model.chat_template")
    if not file.is_file():
        raise ValueError(
            f"model.chat_template={setting}: there is no such file. Give a Jinja file, or 'plain'."
        )
    return file.read_text(encoding="utf-8")


def _ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(value) if isinstance(value, list) else frozenset({value})


def _generation_stops(folder: str, revision: str) -> frozenset[int]:
    try:
        return _ids(GenerationConfig.from_pretrained(folder, revision=revision).eos_token_id)
    except OSError:  # a model without generation_config.json
        return frozenset()
