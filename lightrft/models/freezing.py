"""Parts of a model that do not learn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from lightrft.models.blocks import blocks
from lightrft.models.families import part

PARTS = ("vision", "audio", "projector", "language")
"""Parts that a model may have, by the names that they all have in common."""
FIRST_LAYERS = re.compile(r"layers:(\d+)")
"""What names the embedding with the layers behind it, such as layers:8."""


def freeze(module: Any, names: Sequence[str]) -> None:
    """Switches learning off for parts of a model: vision, audio, projector, language, layers:N (the embedding and the first N layers of
    the language model), or the beginning of parameter names.

    `projector` is what is neither a tower nor the language model nor a head. Without gradients below them, frozen first layers cost their
    forward passes alone. A head that shares the matrix of the embedding is frozen with it. ValueError if a name fits nothing.
    """
    for name in names:
        found = named(module, name)
        if not found:
            raise unknown(module, name)
        for parameter in found.values():
            parameter.requires_grad_(False)


def named(module: Any, name: str) -> dict[str, nn.Parameter]:
    """The parameters that a name of model.freeze stands for, by their own names; none for a name that fits nothing, or is empty."""
    first = FIRST_LAYERS.fullmatch(name)
    if not first:
        return dict(part(module, name)) if name else {}
    inside = {id(parameter) for parameter in _first_layers(module, int(first[1]))}
    return {own: parameter for own, parameter in module.named_parameters() if id(parameter) in inside}


def unknown(module: Any, name: str) -> ValueError:
    """What to raise for a name that fits nothing."""
    known = [kind for kind in PARTS if list(part(module, kind))]
    return ValueError(
        f"model.freeze={name or repr(name)}: no part or parameter of this model is called so. It has the parts "
        f"{', '.join(known)}, and parameters such as {next(iter(module.named_parameters()))[0]}."
    )


def _first_layers(module: Any, count: int) -> Iterator[nn.Parameter]:
    """Parameters of the embedding and of the first layers. ValueError where there are fewer, or would be none left to learn."""
    layers = blocks(module)
    if not 0 < count < len(layers):
        raise ValueError(
            f"model.freeze=layers:{count}: this model has {len(layers)} layers. Name at least 1 and fewer than those, or `language`."
        )
    for one in (module.get_input_embeddings(), *layers[:count]):
        yield from one.parameters()
