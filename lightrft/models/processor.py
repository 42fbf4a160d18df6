"""From messages to tokens and back: the only place that knows the tokenizer and the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightrft.types import Message, Prompt, Record

PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


class Processor:
    """A tokenizer with its chat template and the tokens that end an answer."""

    def __init__(self, tokenizer: Any, stop_ids: frozenset[int], vocab_size: int) -> None:
        if not stop_ids:
            raise ValueError(
                "the tokenizer and the model name no end token, so no answer could ever end by itself. "
                "Set eos_token in the tokenizer, or eos_token_id in generation_config.json."
            )
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template. Set model.chat_template to a Jinja file, or to 'plain' for a base "
                "model that goes on from plain text."
            )
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.vocab_size = vocab_size

    def prompt(self, record: Record) -> Prompt:
        """The record's messages through the chat template, ready for an answer."""
        return Prompt(
            id=record.id,
            token_ids=self.tokens(record.messages),
            messages=record.messages,
            target=record.target,
            source=record.source,
        )

    def tokens(self, messages: Sequence[Message], *, answer_next: bool = True) -> list[int]:
        """Token ids of a conversation; with `answer_next` it ends where the assistant begins to speak."""
        encoded = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=answer_next, tokenize=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def rendered(self, messages: Sequence[Message]) -> str:
        """The same as text, for people."""
        return str(
            self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        )

    def text(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Decoded text; special tokens are left out unless `special`."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=not special))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token by itself, for viewers."""
        return [str(self.tokenizer.decode([t])) for t in token_ids]

    def save(self, folder: Path) -> None:
        """Writes tokenizer and template into a Hugging Face folder."""
        self.tokenizer.save_pretrained(folder)
