"""The blocks that a language model is made of: what sharding backends take apart."""

from __future__ import annotations

from torch import nn

from lightrft.models.logprobs import backbone


def blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of the language part, in order: those modules that transformers says must stay whole."""
    body = backbone(model)
    text = body.config.get_text_config()
    language = next(m for m in body.modules() if getattr(m, "config", None) is text)
    whole = set(body._no_split_modules or ())
    return [m for m in language.modules() if type(m).__name__ in whole]
