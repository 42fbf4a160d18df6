"""The blocks that a model is made of: what sharding backends take apart."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from lightrft.models.families import is_multimodal
from lightrft.models.logprobs import backbone, causal_lm


def blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of the language part, or the blocks of a denoising transformer, in order: what must stay whole by its own word."""
    if denoises(model):  # it says so of itself
        return _outermost(model, set(getattr(causal_lm(model), "_no_split_modules", None) or ()))
    body = backbone(model)
    text = body.config.get_text_config()
    language = next(m for m in body.modules() if getattr(m, "config", None) is text)
    whole = set(body._no_split_modules or ())
    return [m for m in language.modules() if type(m).__name__ in whole]


def _outermost(model: nn.Module, named: set[str]) -> list[nn.Module]:
    """The modules of these classes that are in no other of them, in order: blocks of UNets hold each other."""
    if type(model).__name__ in named:
        return [model]
    return [block for child in model.children() for block in _outermost(child, named)]


def reads_media(model: nn.Module) -> bool:
    """Whether some responses may pass parts of the model by, such as a tower that sees."""
    return not denoises(model) and is_multimodal(backbone(model).config)


def denoises(model: nn.Module) -> bool:
    """Whether this is a denoising transformer: one of another package, with no model of transformers in it, as critics have."""
    return not any(isinstance(part, PreTrainedModel) for part in model.modules())
