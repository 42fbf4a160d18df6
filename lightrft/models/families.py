"""What kinds of models with eyes and ears need beyond what their classes and configs say: a row each, and most need none.

Everything else about a family is read off transformers: the class from the config, the tokens that stand for media from
the config, position rows from the model's own `get_rope_index`, parts from the sections of the config.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForMultimodalLM

from lightrft.models.attention import ATTENTION, mask_of

Span = tuple[int, int]
KINDS = {"image": 1, "video": 2, "audio": 3}
"""Kinds of media, and the number that transformers' token types give each."""


@dataclass(frozen=True)
class Family:
    """Where a kind of model differs from the rule."""

    batched: bool = False
    """Pictures come with a batch dimension before their own: (1, pictures, ...)."""
    both_ways: bool = False
    """Tokens of one picture see each other, later ones too."""
    frames_together: bool = False
    """All frames of a clip stand in one run of tokens, numbered through in time."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Part -> section of the config, where that is not PART_config."""


RULE = Family()
FAMILIES: dict[str, Family] = {
    "gemma3": Family(both_ways=True),
    "granite_speech": Family(parts={"audio": "encoder_config"}),
    "idefics3": Family(batched=True),
    "qwen2_5_vl": Family(frames_together=True),
    "qwen2_vl": Family(frames_together=True),
    "smolvlm": Family(batched=True),
}
"""model_type -> row. A family that is not here follows the rule."""


def family(config: Any) -> Family:
    """The row of a model's config."""
    return FAMILIES.get(config.model_type, RULE)


def made_for(text: Any) -> int | None:
    """Tokens of the longest text that a model was made for, from the configuration of its text part; None in a family without limit.

    Positions that are stretched later (YaRN, Peng et al. 2023, https://arxiv.org/abs/2309.00071, and others) may or may not be
    counted in max_position_embeddings.
    """
    room: int | None = getattr(text, "max_position_embeddings", None)
    stretched = getattr(text, "rope_parameters", None) or {}
    if room is None or stretched.get("rope_type") not in ("yarn", "linear", "dynamic", "longrope"):
        return room
    original = stretched.get("original_max_position_embeddings") or room
    return max(room, int(original * (stretched.get("factor") or 1.0)))


def is_multimodal(config: Any) -> bool:
    """Whether the model reads more than text."""
    return type(config) in AutoModelForMultimodalLM._model_mapping and config.get_text_config() is not config


def attention_of(config: Any) -> str | dict[str, str]:
    """`attn_implementation` for loading: packed attention in the language part, the model's own choice in all others."""
    if not is_multimodal(config):
        return ATTENTION
    text = config.get_text_config()
    return {name: ATTENTION for name in config.sub_configs if getattr(config, name) is text}


def placeholders(config: Any) -> list[int]:
    """Tokens that stand for media, or for a masked token. No answer may hold one: the model would look for a picture that is not there."""
    mask = mask_of(config)
    if mask is not None:
        return [mask]
    names = [f"{kind}_token_{what}" for kind in KINDS for what in ("id", "index")]
    found = {getattr(config, name, None) for name in names}
    return sorted(token for token in found if isinstance(token, int)) if is_multimodal(config) else []


def forward_media(module: Any, media: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Media of a packed row as the model's forward takes them: on its device, in its type."""
    if not media:
        return {}
    weight = next(module.parameters())
    moved = {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() else None)
        for name, value in media.items()
    }
    return {name: value[None] for name, value in moved.items()} if family(module.config).batched else moved


def stored_media(config: Any, media: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Media as `Prompt.media` holds them: medium by medium along the first dimension, so that prompts can be laid end to end."""
    return {n: value.flatten(0, 1) for n, value in media.items()} if family(config).batched else dict(media)


def joined(values: Sequence[Tensor]) -> Tensor:
    """Media of several prompts along the first dimension.

    Where pictures are of different sizes, the smaller ones get zeros behind them, as the families' own processors do for
    a batch; such families tell their models the sizes in a tensor beside.
    """
    if len({value.shape[1:] for value in values}) == 1:
        return torch.cat(list(values))
    sizes = [max(lengths) for lengths in zip(*(value.shape[1:] for value in values), strict=True)]
    whole = values[0].new_zeros(sum(len(value) for value in values), *sizes)
    start = 0
    for value in values:
        whole[(slice(start, start + len(value)), *map(slice, value.shape[1:]))] = value
        start += len(value)
    return whole


def sees_both_ways(config: Any) -> bool:
    """Whether all tokens of a picture see each other."""
    return is_multimodal(config) and family(config).both_ways


def seen_both_ways(config: Any, token_ids: Sequence[int]) -> tuple[Span, ...]:
    """Token ranges of pictures whose tokens all see each other; none for most families."""
    if not sees_both_ways(config):
        return ()
    marks, spans, start = set(placeholders(config)), [], 0
    for is_picture, run in groupby(token_ids, key=marks.__contains__):
        length = sum(1 for _ in run)
        spans += [(start, start + length)] if is_picture else []
        start += length
    return tuple(spans)


def has_position_rows(body: Any) -> bool:
    """Whether the model's rotary positions have several axes (M-RoPE)."""
    return hasattr(body, "get_rope_index")


def position_rows(body: Any, token_ids: Sequence[int], encoded: Mapping[str, Any]) -> Tensor:
    """(R, P): the place of each token in the text, and below it the axes that the model's own `get_rope_index` gives.

    The first row is what keeps packed sequences apart: with the axes alone transformers takes a packed row for one
    sequence, and answers leak into each other without a word. `body` may be on the meta device: only its config is
    read. `encoded` is what the model's processor returned.
    """
    place = torch.arange(len(token_ids))
    grids = ("image_grid_thw", "video_grid_thw", "feature_attention_mask", "audio_seqlens")
    if not any(encoded.get(name) is not None for name in grids):
        return place.expand(4, -1)
    given: dict[str, Any] = {
        "mm_token_type_ids": _kinds(body.config, token_ids),
        "attention_mask": torch.ones(1, len(token_ids), dtype=torch.long),
        **{name: value for name, value in encoded.items() if value is not None},
    }
    if "feature_attention_mask" in given:
        given.setdefault("audio_seqlens", given["feature_attention_mask"].sum(-1))
    given.setdefault("second_per_grids", given.get("video_second_per_grid"))  # one thing, two names
    given["input_ids"] = torch.tensor([list(token_ids)])
    taken = inspect.signature(body.get_rope_index).parameters
    rows, _ = body.get_rope_index(**{name: value for name, value in given.items() if name in taken})
    axes = rows[:, 0].long()
    if family(body.config).frames_together:
        axes = _in_order(axes, _kinds(body.config, token_ids)[0].tolist())
    return torch.cat([place[None], axes])


def _in_order(axes: Tensor, kinds: Sequence[int]) -> Tensor:
    """(R, P) with each run of text or of a medium beginning one after the largest place of the run before it.

    Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; so the models were trained, and so other engines read
    them. transformers 5 counts height and width alone, and puts the text after a long clip at places that the clip has.
    """
    runs: list[Tensor] = []
    start, free = 0, 0
    for _, same in groupby(kinds):
        length = sum(1 for _ in same)
        run = axes[:, start : start + length]
        runs.append(run + (free - run.min()))
        start, free = start + length, int(runs[-1].max()) + 1
    return torch.cat(runs, 1)


def _kinds(config: Any, token_ids: Sequence[int]) -> Tensor:
    """(1, P): 0 for text, else the kind of medium a token stands for."""
    kind_of = {
        token: number
        for kind, number in KINDS.items()
        for what in ("id", "index")
        if (token := getattr(config, f"{kind}_token_{what}", None)) is not None
    }
    return torch.tensor([[kind_of.get(token, 0) for token in token_ids]])


def part(module: Any, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a part by its name, or whose names begin with it."""
    config = module.config
    towers = {"vision": "vision_config", "audio": "audio_config"} | dict(family(config).parts)
    language = _modules_of(module, config.get_text_config())
    outside = [
        prefix
        for section in towers.values()
        for prefix in _modules_of(module, getattr(config, section, None))
    ]
    head = [n for n, m in module.named_modules() if m is module.get_output_embeddings()]
    for parameter_name, parameter in module.named_parameters():
        if name == "language":
            inside = not is_multimodal(config) or _below(parameter_name, [*language, *head])
        elif name == "projector":
            own = getattr(module, "exact", ())  # a head to values or scores
            inside = is_multimodal(config) and not _below(parameter_name, [*language, *head, *own, *outside])
        elif name in towers:
            inside = _below(parameter_name, _modules_of(module, getattr(config, towers[name], None)))
        else:
            inside = parameter_name.startswith(name)
        if inside:
            yield parameter_name, parameter


def _modules_of(module: nn.Module, section: Any) -> list[str]:
    """Names of the outermost modules that were made from a section of the config."""
    if section is None:
        return []
    names = [name for name, m in module.named_modules() if name and getattr(m, "config", None) is section]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _below(name: str, prefixes: Sequence[str]) -> bool:
    return any(name.startswith(f"{prefix}.") for prefix in prefixes)
