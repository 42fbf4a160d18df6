"""A chat template at work: it comes with a model folder, so it may be wrong, endless or hostile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from lightrft.models.sandbox import MOST, bound_templates
from lightrft.utils.deadline import within

LONGEST_SECONDS = 10.0
"""Time in which a template must have written one conversation."""
MOST_CHARACTERS = MOST
"""Longest conversation that a template may write."""
CURE = "Set model.chat_template to another Jinja file."


def written(
    reader: Any,
    messages: Sequence[Any],
    *,
    answer_next: bool,
    chat_template: str | None = None,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """The conversation as the chat template of a tokenizer or processor writes it, or another if one is given.

    `tools`: schemas of functions that it is told of. transformers runs templates in a sandbox, here a bounded one. TemplateError for
    a template that tries to leave it, refuses the messages, does not end, or writes without measure.
    """
    bound_templates()
    endless = TemplateError(
        f"it had not written them after {LONGEST_SECONDS:g} s, so it may never end. {CURE}"
    )
    try:
        with within(LONGEST_SECONDS, endless):
            text = str(
                reader.apply_chat_template(
                    messages,
                    add_generation_prompt=answer_next,
                    tokenize=False,
                    chat_template=chat_template,
                    tools=list(tools) or None,
                )
            )
    except (RecursionError, MemoryError, OverflowError) as error:
        raise TemplateError(f"it does not end well ({type(error).__name__}). {CURE}") from error
    if len(text) > MOST_CHARACTERS:
        raise TemplateError(
            f"it writes {len(text):,} characters, and {MOST_CHARACTERS:,} are the most. {CURE}"
        )
    return text
