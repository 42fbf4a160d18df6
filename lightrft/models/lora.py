"""Low-rank adapters, and the weights of the plain transformers model under its own names, adapters left out or folded in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.adapters import check_start, drop_in_learning, read_adapter
from lightrft.models.blocks import blocks, denoises
from lightrft.models.families import is_multimodal, part
from lightrft.models.logprobs import causal_lm
from lightrft.models.nf4 import Nf4Linear, need_library, round_linear
from lightrft.utils.paths import expanded, without_home

Gather = Callable[[torch.Tensor, torch.dtype], torch.Tensor]
"""The whole of a tensor that a backend holds in pieces, in a type."""


def add_adapters(model: Any, settings: ModelConfig) -> nn.Module:
    """The model with low-rank adapters beside the linear layers that `model.lora.targets` names, new ones or those of the folder
    `model.lora.start`; parts of it that are `exact` (a head to values) or in `model.lora.modules_to_save` learn whole.

    ValueError for targets that it lacks, for layers whose adapters something would miss (see `_check_adapted`), and for a folder
    to start from that holds other adapters than the settings describe.
    """
    import peft

    config = settings.lora

    own = exact_parts(model)
    targets = _targets(model, config)
    kind = None if own or denoises(model) else "CAUSAL_LM"
    adapters = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=targets,
        task_type=kind,
    )
    check_start(config)
    adapted = peft.get_peft_model(model, adapters)
    adapters.base_model_name_or_path = _base(settings.path)
    adapters.revision = None if settings.revision == "main" else settings.revision
    _check_adapted(adapted)
    _check_rounded(adapted, config)
    if config.start:
        read_adapter(adapted, config.start)
    drop_in_learning(adapted)
    for name in (*own, *_trained_whole(adapted, config.modules_to_save)):
        model.get_submodule(name).requires_grad_(True)
    return adapted


def round_base(model: nn.Module, config: LoraConfig) -> None:
    """Rounds the matrices that adapters are to stand beside, in place, if `model.lora.quantize_base` says so; before the adapters come."""
    if config.quantize_base == "off":
        return
    targets, head = _targets(model, config), _head(model)
    for name, layer in model.named_modules():
        meant = targets == "all-linear" or any(name == t or name.endswith(f".{t}") for t in targets)
        if meant and isinstance(layer, nn.Linear) and layer is not head:
            round_linear(layer)


def _targets(model: nn.Module, config: LoraConfig) -> Any:
    """Names of the layers to adapt, or all-linear where peft finds them. ValueError for one that no part of the model has."""
    if config.targets == ["all-linear"]:
        return _all_linear(model, exact_parts(model))
    _check_names(model, config.targets)
    return config.targets


def _check_rounded(adapted: nn.Module, config: LoraConfig) -> None:
    """ValueError for a layer with adapters whose matrix `round_base` does not know how to round."""
    if config.quantize_base == "off":
        return
    for name, layer in causal_lm(adapted).named_modules():
        if hasattr(layer, "get_base_layer") and not isinstance(layer.get_base_layer(), Nf4Linear):
            raise ValueError(
                f"model.lora.quantize_base={config.quantize_base}: '{name}' is of type {type(layer.get_base_layer()).__name__}, and only plain "
                "linear layers can be rounded. Set model.lora.quantize_base=off, or name other model.lora.targets."
            )


def _base(path: str) -> str:
    """The model as an adapter folder names it: a folder by its whole path, with ~ for the home folder."""
    folder = expanded(path, "model.path")
    return without_home(str(folder.absolute())) if folder.is_dir() else path


def _trained_whole(adapted: nn.Module, wanted: list[str]) -> list[str]:
    """The parts of the plain model that `model.lora.modules_to_save` names. ValueError for a name that no part has, and for parts
    that peft could not give back to another model: those with adapters, and two that share a matrix."""
    inner = causal_lm(adapted)
    layers, found = {id(layer) for layer in _lora_layers(adapted)}, []
    shared = _shared(inner)
    for name in wanted:
        places = [(n, m) for n, m in inner.named_modules() if n == name or n.endswith(f".{name}")]
        told = f"model.lora.modules_to_save: '{name}'"
        if not places:
            raise ValueError(f"{told} names no part of the model. Name modules, such as norm or lm_head.")
        for place, module in places:
            if any(id(m) in layers for m in module.modules()):
                raise ValueError(f"{told} has adapters in it. Take it out, or name other model.lora.targets.")
            if any(p in shared for p in module.parameters()):
                raise ValueError(
                    f"{told}: the model ties its head to its embedding, which other programs would untie. Take it out."
                )
            found.append(place)
    return found


def _shared(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that stand in more than one place of the model."""
    seen: set[nn.Parameter] = set()
    every = [p for _, p in model.named_parameters(remove_duplicate=False)]
    return {p for p in every if p in seen or seen.add(p)}  # type: ignore[func-returns-value]


def _all_linear(model: Any, own: tuple[str, ...]) -> Any:
    """What all-linear names: every linear layer but the head and the parts that are `own`; towers of media stay as they are, and so do
    experts that share one tensor, and all of a denoising transformer that is outside its blocks."""
    if denoises(model):
        inside = {id(m) for block in blocks(model) for m in block.modules()}
        return sorted(n for n, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside)
    if not (own or is_multimodal(model.config) or _has_experts(model)):
        return "all-linear"
    head = _head(model)
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if is_multimodal(model.config):
        linears &= {name.rpartition(".")[0] for name, _ in part(model, "language")}
    return sorted(linears - set(own))


def _has_experts(model: nn.Module) -> bool:
    """Whether matrices of several experts lie in one tensor, which is no linear layer; peft counts them as such."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    owners = (m for m in model.modules() if not isinstance(m, kinds))
    return any(p.dim() == 3 for m in owners for p in m.parameters(recurse=False))


def _head(model: Any) -> nn.Module | None:
    """The layer from hidden states to the vocabulary; a denoising transformer has none."""
    return None if denoises(model) else model.get_output_embeddings()


def check_targets(model: Any, settings: ModelConfig) -> None:
    """ValueError as `add_adapters` raises it; for a model without weights, before those of the real one are read."""
    if settings.lora.quantize_base != "off":
        need_library()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the real model gives them again
        round_base(model, settings.lora)
        add_adapters(model, settings)


def check_whole(config: LoraConfig, backend: str) -> None:
    """ValueError for adapters that need whole weights, from a backend that holds them in pieces."""
    if config.quantize_base != "off":
        raise ValueError(
            f"model.lora.quantize_base={config.quantize_base} with strategy.backend={backend}: this backend would cut or convert the bytes of "
            "rounded matrices as if they were numbers. Set model.lora.quantize_base=off, or start one process without strategy.backend."
        )
    if config.use_dora:
        raise ValueError(
            f"model.lora.use_dora with strategy.backend={backend}: a norm is of whole weights, and this backend holds pieces. Set "
            "model.lora.use_dora=false, or take a strategy.backend that holds whole weights."
        )


def starts_as_base(config: LoraConfig) -> bool:
    """Whether a model without its adapters is the model that a run began from."""
    return bool(config.rank) and not (config.start or config.modules_to_save)


def _check_names(model: Any, targets: list[str]) -> None:
    """ValueError for a target that no part of the model has: peft asks only that one of them is there."""
    parts = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in parts):
            raise ValueError(
                f"model.lora.targets: no layer of the model is called '{target}'. Its linear layers: {', '.join(_linear_names(model))}."
            )


def _linear_names(model: Any) -> list[str]:
    """What the linear layers but the head are called, adapted or not; of two in a list the list's name is part of it (to_out.0)."""
    head, found = _head(model), set[str]()
    for name, module in model.named_modules():
        path = name.removesuffix(".base_layer").split(".")
        if isinstance(module, nn.Linear | Conv1D) and module is not head and ".lora_" not in name:
            found.add(".".join(path[-2:] if path[-1].isdigit() else path[-1:]))
    return sorted(found)


def _check_adapted(model: nn.Module) -> None:
    """ValueError for adapters on the head, the embedding or a layer that is not linear.

    The loss multiplies with the head's own matrix, tile by tile, and would pass an adapter by; tied to the embedding, one
    matrix would have to hold two sums.
    """
    inner = causal_lm(model)
    named = {id(module): name for name, module in inner.named_modules()}
    for layer in _lora_layers(model):
        if layer is _head(inner) or named[id(layer)] in exact_parts(inner):
            kind = "the head of the model"
        elif not isinstance(layer.get_base_layer(), nn.Linear | Conv1D):
            kind = f"of type {type(layer.get_base_layer()).__name__}"
        else:
            continue
        examples = " ".join(_linear_names(inner)[:2])
        raise ValueError(
            f"model.lora.targets: '{named[id(layer)]}' is {kind}, and only linear layers inside the model can be adapted. Name those, e.g. "
            f"{examples}, or take all-linear, which leaves the others out."
        )


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, low-rank adapters are folded into the weights; afterwards the weights are the very same as before.

    Subtracting what was added would leave rounding behind, so the original tensors are kept and put back: this takes
    memory for one more copy of the adapted weights while it lasts. Matrices that rest in 4 bits are plain ones inside.
    """
    undo = [_merge(layer) for layer in _lora_layers(model)]
    try:
        yield
    finally:
        for back in undo:
            back()


def _merge(layer: Any) -> Callable[[], None]:
    """Folds a layer's adapters into its weight; what is returned puts the original back.

    As `full_weights` does, and not by peft's own merging, which adds what it has rounded to the type of the weight: a bfloat16 model would be
    another one than the backends that hold pieces, and exports, make of the same adapters.
    """
    base = layer.get_base_layer()
    if isinstance(base, Nf4Linear):
        unfold = base.unpack()
    else:
        unfold = partial(setattr, base.weight, "data", base.weight.data)
    exact = torch.promote_types(base.weight.dtype, torch.float32)
    found = _adapted(base.weight.to(exact), layer, lambda weight, _: weight.detach().to(exact))
    base.weight.data = found.to(base.weight.dtype)
    layer.merged_adapters.extend(layer.active_adapters)  # so that its passes leave them out

    def back() -> None:
        unfold()
        layer.merged_adapters.clear()

    return back


def exact_parts(model: nn.Module) -> tuple[str, ...]:
    """Names of the parts of the plain transformers model that stay in float32, whatever type the rest computes in."""
    return tuple(getattr(causal_lm(model), "exact", ()))


def is_adapted(model: nn.Module) -> bool:
    """True for a model with low-rank adapters."""
    return causal_lm(model) is not model


def plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights under the names of the plain transformers model, adapters left out."""
    return dict(plain_weights(model))


def plain_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of `plain_state`, one at a time: of a matrix that rests in 4 bits a copy as it is computed with."""
    inner = causal_lm(model)
    rounded = {f"{name}.packed": m for name, m in inner.named_modules() if isinstance(m, Nf4Linear)}
    for key, tensor in inner.state_dict().items():
        if ".lora_" not in key:
            yield plain_name(key), rounded[key].weight if key in rounded else tensor


def plain_names(model: nn.Module) -> frozenset[str]:
    """The names in `plain_state`."""
    return frozenset(plain_name(key) for key in causal_lm(model).state_dict() if ".lora_" not in key)


def plain_name(name: str) -> str:
    """What the plain transformers model calls a weight that has adapters beside it or rests in 4 bits; itself without."""
    name = name.replace(".base_layer.", ".")
    return f"{name.removesuffix('.packed')}.weight" if name.endswith(".packed") else name


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the plain transformers model under its names, adapters left out; tied ones under each of theirs."""
    named = causal_lm(model).named_parameters(remove_duplicate=False)
    return {plain_name(name): p for name, p in named if ".lora_" not in name}


def full_weights(model: nn.Module, gather: Gather, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the plain transformers model in `dtype`, one at a time, adapters folded in; tied ones under each name, parts
    that are `exact` in float32."""
    adapted = _adapted_layers(model)
    exact = tuple(f"{name}." for name in exact_parts(model))
    for name, parameter in plain_parameters(model).items():
        layer = adapted.get(parameter)
        if layer is None:
            kept = torch.promote_types(dtype, torch.float32) if name.startswith(exact) else dtype
            yield name, gather(parameter, kept)
        else:
            yield name, _adapted(_base_weight(parameter, layer, gather), layer, gather).to(dtype)
    for name, buffer in causal_lm(model).named_buffers():
        owner, _, own = name.rpartition(".")
        if own not in causal_lm(model).get_submodule(owner)._non_persistent_buffers_set:
            yield plain_name(name), buffer


def _base_weight(parameter: nn.Parameter, layer: Any, gather: Gather) -> torch.Tensor:
    """The whole weight beside a layer's adapters in float32; one that is still to come is rounded as the layer would be."""
    base = layer.get_base_layer()
    if not isinstance(base, Nf4Linear):
        return gather(parameter, torch.float32)
    found = base.rounded(gather(parameter, torch.float32)) if base.is_empty else base.weight
    return found.float()


def _lora_layers(model: nn.Module) -> list[Any]:
    """The layers with adapters; none of a plain model."""
    if not is_adapted(model):
        return []
    from peft.tuners.lora import LoraLayer

    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def _adapted_layers(model: nn.Module) -> dict[nn.Parameter, Any]:
    """Weight -> the layer that adapts it."""
    bases = [(layer.get_base_layer(), layer) for layer in _lora_layers(model)]
    return {base.packed if isinstance(base, Nf4Linear) else base.weight: layer for base, layer in bases}


def _adapted(weight: torch.Tensor, layer: Any, gather: Gather) -> torch.Tensor:
    """A whole weight with its adapters folded in; under DoRA the weights of each output keep a norm of their own (Liu et al. 2024,
    https://arxiv.org/abs/2402.09353, eq. 5)."""
    found = weight + _difference(layer, gather)
    outputs = 1 if layer.fan_in_fan_out else 0
    for magnitude in layer.lora_magnitude_vector.values():
        norms = gather(magnitude.weight, torch.float32) / found.norm(dim=1 - outputs)
        found = found * norms.unsqueeze(1 - outputs)
    return found


def _difference(layer: Any, gather: Gather) -> torch.Tensor:
    """What the adapters of a linear layer add to its weight: scale * B A (Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3)."""
    found: torch.Tensor = sum(
        layer.scaling[name]
        * (
            gather(layer.lora_B[name].weight, torch.float32)
            @ gather(layer.lora_A[name].weight, torch.float32)
        )
        for name in layer.active_adapters
    )
    return found.T if layer.fan_in_fan_out else found
