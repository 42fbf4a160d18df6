"""The classes that give a conversation scores: transformers' ForSequenceClassification, also of families where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMultimodalLM, PreTrainedModel

from lightrft.models.families import attention_of, is_multimodal
from lightrft.models.logprobs import backbone

HEAD = "score"
"""What transformers' ForSequenceClassification classes call the head of a language model."""


def output_labels(config: Any) -> list[str]:
    """The names of a reward model's outputs, in their order."""
    return [str(config.id2label[number]) for number in sorted(config.id2label)]


def output_number(labels: Sequence[str], output: str) -> int | None:
    """The number of the output that a setting names by its label or its number, or leaves out where it is the only one; None: it is not there."""
    if output in labels:
        return labels.index(output)
    if output.isdecimal() and int(output) < len(labels):
        return int(output)
    return 0 if not output and len(labels) == 1 else None


def classifier_class(config: Any) -> Any:
    """The class that reads a reward model of this config: transformers' own, where it has one, else for a family that sees or hears its
    `GenericForSequenceClassification` over that family's body.

    The latter is what transformers' own classes of newer families are (Gemma 3, Qwen3.5), and is called as they are:
    LlavaForSequenceClassification, say.
    """
    from transformers import AutoModelForSequenceClassification

    if type(config) in AutoModelForSequenceClassification._model_mapping or not is_multimodal(config):
        return AutoModelForSequenceClassification
    kind: Any = type(config)
    return _generic(kind)


@cache
def _generic(config: Any) -> Any:
    from transformers.modeling_layers import GenericForSequenceClassification

    generative: Any = AutoModelForMultimodalLM._model_mapping[config]
    family = next(kind for kind in generative.__mro__[1:] if issubclass(kind, PreTrainedModel))
    name = generative.__name__.partition("For")[0] + "ForSequenceClassification"
    return type(
        name, (GenericForSequenceClassification, family), {"__module__": __name__, "config_class": config}
    )


def classifier(config: Any, name: str) -> Any:
    """The ForSequenceClassification of a model's config, on the meta device; ValueError that begins with `name` if there is none whose
    head is one linear layer."""
    kind, model, cause = classifier_class(config), None, None
    make = kind._from_config if issubclass(kind, PreTrainedModel) else kind.from_config
    try:
        with torch.device("meta"):
            model = make(config, attn_implementation=attention_of(config))
    except ValueError as error:  # no such class
        cause = error
    if model is None or list(heads(model)) != [HEAD]:
        raise ValueError(
            f"{name}: transformers has no ForSequenceClassification with one linear layer called {HEAD} for a {config.model_type}, so it cannot "
            "become a reward model. Take a model of another family."
        ) from cause
    return model


def heads(module: Any) -> dict[str, nn.Linear]:
    """Name -> linear layer, of those that are not in the body."""
    inside = set(backbone(module).modules())
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear) and m not in inside}
