"""The blocks that a model is made of: what sharding backends take apart."""

from __future__ import annotations

from torch import nn

from lightrft.models.families import is_multimodal
from lightrft.models.logprobs import backbone, causal_lm


def blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of the language part, or the blocks of a denoising transformer, in order: what must stay whole by its own word."""
    if not hasattr(causal_lm(model), "get_output_embeddings"):  # a denoising transformer says it of itself
        named = set(getattr(model, "_no_split_modules", None) or ())
        return [m for m in model.modules() if type(m).__name__ in named]
    body = backbone(model)
    text = body.config.get_text_config()
    language = next(m for m in body.modules() if getattr(m, "config", None) is text)
    whole = set(body._no_split_modules or ())
    return [m for m in language.modules() if type(m).__name__ in whole]


def reads_media(model: nn.Module) -> bool:
    """Whether some responses may pass parts of the model by, such as a tower that sees."""
    return hasattr(causal_lm(model), "get_output_embeddings") and is_multimodal(backbone(model).config)
