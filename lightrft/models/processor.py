"""From messages to tokens and back: the only place that knows the tokenizer, the chat template and the media processor."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from lightrft.media.parts import MediaError, has_media, parts
from lightrft.models.media import MediaEncoder
from lightrft.models.pieces import pieces
from lightrft.models.template import written
from lightrft.types import Message, Prompt, Record, Sampling

PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<' ~ part['type'] ~ '>' }}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
)


class Processor:
    """A tokenizer with its chat template and the tokens that end an answer; for some models, what reads media."""

    def __init__(
        self, tokenizer: Any, stop_ids: frozenset[int], vocab_size: int, media: MediaEncoder | None = None
    ) -> None:
        if not stop_ids:
            raise ValueError(
                "the tokenizer and the model name no end token, so no response could ever end by itself. "
                "Set eos_token in the tokenizer, or eos_token_id in generation_config.json."
            )
        if not (tokenizer if media is None else media.processor).chat_template:
            raise ValueError(
                "the tokenizer has no chat template. Set model.chat_template to a Jinja file, or to 'plain' for a base "
                "model that goes on from plain text."
            )
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.vocab_size = vocab_size
        self.media = media
        self.day: datetime | None = None
        """What a template that writes today's date is told; None: the present moment. A run has one (build/process.py)."""
        self.tools: list[dict[str, Any]] = []
        """Schemas of the tools that the chat template is to tell the policy of, in OpenAI's form."""
        self.preamble = ""
        """What every conversation says in its system message after that message's own text."""

    def prompt(self, record: Record) -> Prompt:
        """The record's messages through the chat template, ready for an answer, but for media: those are read by `open`.

        Until then a mark stands for each medium among the tokens.
        """
        kinds = self.check(record)
        token_ids = self.tokens(record.messages)
        rows = None if self.media is None or kinds else self.media.text_positions(token_ids)
        return Prompt(
            id=record.id,
            token_ids=token_ids,
            messages=record.messages,
            target=record.target,
            source=record.source,
            positions=rows,
        )

    def check(self, record: Record) -> set[str]:
        """The kinds of media in the record's messages. ValueError for one that the model does not read, and for a text that holds a mark of one.

        Writes and tokenises nothing.
        """
        if self.media is not None:
            self.media.check_texts(record.messages)
        if all(isinstance(message["content"], str) for message in record.messages):
            return set()
        kinds = {kind for kind, _ in parts(record.messages)}
        deaf = kinds - (set() if self.media is None else self.media.kinds)
        if deaf:
            raise ValueError(
                f"{record.id}: the prompt holds media of the kind '{min(deaf)}', which the model of model.path does not read."
            )
        return kinds

    @cached_property
    def can_defer(self) -> bool:
        """Whether prompts may be tokenised when they are drawn: no token can be beyond the model's table."""
        return bool(max(self.tokenizer.get_vocab().values(), default=0) < self.vocab_size)

    def blank(self) -> Prompt:
        """A question of one token, to be computed and not learned from."""
        token_ids = [min(self.stop_ids)]
        rows = None if self.media is None else self.media.text_positions(token_ids)
        return Prompt("blank", token_ids, [], None, "", positions=rows)

    def open(self, prompt: Prompt) -> Prompt:
        """The prompt as the model reads it, with its media; itself if it has none. MediaError naming record and medium."""
        if prompt.media or not has_media(prompt.messages):
            return prompt
        assert self.media is not None
        try:
            read = self.media.encode(prompt.messages, self.rendered(prompt.messages))
        except MediaError as error:
            raise MediaError(f"{prompt.id}: {error}") from error
        return replace(
            prompt,
            token_ids=read.token_ids,
            positions=read.positions,
            media=read.media,
            unexpanded_token_ids=prompt.token_ids,
        )

    def tokens(self, messages: Sequence[Message], *, answer_next: bool = True) -> list[int]:
        """Token ids of a conversation; with `answer_next` it ends where the assistant begins to speak. Media are not read."""
        text = self.rendered(messages, answer_next=answer_next)
        if self.media is not None:
            return self.media.tokens(text)
        return [*self.begin(), *self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _dated(self) -> str | None:
        """The template as it is on the day of the run, where it writes one; transformers lets nothing else in that tells the time.
        None: the template as it is."""
        template = (self.tokenizer if self.media is None else self.media.processor).chat_template
        if self.day is None or not isinstance(template, str) or "strftime_now" not in template:
            return None
        return on_day(template, self.day)

    def begin(self) -> list[int]:
        """The token that a model's plain texts begin with, where the template is plain text and leaves it out."""
        if self.tokenizer.chat_template != PLAIN_TEMPLATE:
            return []
        begin = self.tokenizer.bos_token_id
        return [begin] if begin is not None and self.tokenizer("a")["input_ids"][:1] == [begin] else []

    def between(self, before: Sequence[int], messages: Sequence[Message], *, instead: str = "") -> list[int]:
        """Tokens that the template adds after `before` until the assistant is to speak, in answer to `messages`.

        `before`: the tokens of the conversation so far, as read and written, up to the end token of its last answer; empty at
        the beginning. ValueError if the template writes that part otherwise once more turns follow; `instead`, beginning a
        sentence's list of cures, names what else the caller's settings offer.
        """
        opened = self.tokens(messages)
        if opened[: len(before)] != list(before):
            raise ValueError(
                f"the chat template does not keep prefixes: it writes turns before message {len(messages)} otherwise once more follow. "
                f"Set {instead}model.chat_template to one that keeps them."
            )
        return opened[len(before) :]

    def said(self, opened: Sequence[int], messages: Sequence[Message], ending: int) -> list[int]:
        """Tokens that the template adds after `opened` for the last message, an answer, until the last token `ending`.

        `opened`: the tokens of the messages before it, where the assistant is to speak. What the template puts after the end
        token is not the assistant's, and may differ if more turns follow; without an end token it is all there is.
        ValueError if the response merges with what comes before it, or has no tokens.
        """
        closed, place = self.tokens(messages, answer_next=False), len(messages) - 1
        if closed[: len(opened)] != list(opened):
            raise ValueError(
                f"message {place}: its first characters merge with what the chat template puts before them. Remove white space at the "
                "beginning of the response, or set model.chat_template."
            )
        added = closed[len(opened) :]
        if not added:
            raise ValueError(f"message {place}: the chat template leaves the response out.")
        return added[: len(added) - (added[::-1].index(ending) if ending in added else 0)]

    def rendered(self, messages: Sequence[Message], *, answer_next: bool = True) -> str:
        """The conversation as the template writes it; with `answer_next` it ends where the assistant begins to speak."""
        messages, template = self._told(messages), self._dated()
        if self.media is not None:
            return self.media.rendered(
                messages, answer_next=answer_next, chat_template=template, tools=self.tools
            )
        return written(
            self.tokenizer,
            _texts(messages),
            answer_next=answer_next,
            chat_template=template,
            tools=self.tools,
        )

    def _told(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with the preamble in their system message."""
        if not self.preamble:
            return messages
        if messages and messages[0]["role"] == "system" and isinstance(messages[0]["content"], str):
            first = Message(role="system", content=f"{messages[0]['content']}\n\n{self.preamble}")
            return [first, *messages[1:]]
        return [Message(role="system", content=self.preamble), *messages]

    def text(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Decoded text; special tokens are left out unless `special`."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=not special))

    def stopping(self, sampling: Sampling) -> Sampling:
        """The sampling with each stop text that is a special token given as that token: decoded text leaves those out.

        ValueError for a stop text that holds a special token and more, since no text would ever match it.
        """
        if not sampling.stop:
            return sampling
        special = {str(token): i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for stop in sampling.stop:
            inside = [name for name in special if name in stop and name != stop]
            if inside and stop not in special:
                raise ValueError(
                    f"rollout.stop: the text {stop!r} holds the special token {inside[0]!r} and more, and could never be found: decoded responses "
                    "leave special tokens out. Give the token alone, or the text without it."
                )
        ids = tuple(special[stop] for stop in sampling.stop if stop in special)
        texts = tuple(stop for stop in sampling.stop if stop not in special)
        return replace(sampling, stop=texts, stop_token_ids=(*sampling.stop_token_ids, *ids))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token, for viewers; together they are the text with its special tokens (models/pieces.py)."""
        return pieces(lambda ids: self.text(ids, special=True), token_ids)

    def save(self, folder: Path) -> None:
        """Writes tokenizer and template into a Hugging Face folder."""
        (self.tokenizer if self.media is None else self.media.processor).save_pretrained(folder)


def on_day(template: str, day: datetime) -> str:
    """The template with `strftime_now` of this day, whatever formats it is called with: a macro goes before the global function.

    A function cannot be handed in, since transformers turns what it does not know into text.
    """
    codes = [f"%{sign}{letter}" for sign in ("-", "") for letter in string.ascii_letters]
    pairs = [("%%", "\0"), *((code, day.strftime(code)) for code in codes), ("\0", "%")]
    said = "".join(
        f" | replace({json.dumps(code)}, {json.dumps(text)})" for code, text in pairs if code != text
    )
    # The empty expression keeps a line break with which the template begins: one behind a block would be dropped.
    return f'{{% macro strftime_now(format) %}}{{{{ format{said} }}}}{{% endmacro %}}{{{{ "" }}}}{template}'


def _texts(messages: Sequence[Message]) -> list[Message]:
    """Messages for a model that only reads: parts of text as one text, which every template takes."""
    return [
        m if isinstance(m["content"], str) else Message(role=m["role"], content=_joined(m["content"]))
        for m in messages
    ]


def _joined(content: Any) -> Any:
    return "".join(p["text"] for p in content) if all(p.get("type") == "text" for p in content) else content
