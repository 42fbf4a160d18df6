"""What stands between two turns of the policy: the tokens that the chat template puts around a reply.

They come from the template itself, by a sentinel in place of what the policy said, and never from its words: those are kept as the
tokens that were sampled. So a conversation only grows, and no turn is tokenized anew.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise, product
from typing import Any

from jinja2 import TemplateError

from lightrft.models.processor import Processor
from lightrft.types import Message, Prompt, Record

SAID, REPLIED = "\u241esaid\u241e", "\u241ereplied{}\u241e"
"""Stand for what the policy said, and for the texts of a reply. The sign is one that texts do not have."""
HOW = {
    "json": 'To call one, write <tool_call>{"name": NAME, "arguments": {...}}</tool_call>, and its result is sent to you.',
    "tags": "To call one, write <NAME>ARGUMENT</NAME>, and its result is sent to you.",
}
"""environment.calls -> what the policy is told of it."""
ROLES = ("tool", "user", "system", "developer")
"""Roles of replies that a template is tried with."""
CUT = " [...] "
"""Stands where a long reply was cut."""

log = logging.getLogger("lightrft")


@dataclass(frozen=True)
class TurnTemplate:
    """A chat template, as far as it joins turns. Made by `turn_template`, which looks whether it can."""

    processor: Processor
    roles: frozenset[str]
    """Roles whose messages the template writes after an assistant's, among tool, user and those of instructions."""
    pairs: frozenset[tuple[str, str]]
    """Roles of two messages that it writes one behind the other; others become one message."""
    marks: frozenset[str]
    """Tokens outside the vocabulary of texts that the template writes turns with though they are not special: `_as_text` breaks them."""

    def between(self, messages: Sequence[Message], reply: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens from the end of the policy's turn until it is to speak again.

        messages: the conversation before that turn. The first token is usually the one that ends a turn, which the policy may
        have sampled itself (`Turns` leaves it out then). Texts of the reply are never read as special tokens.
        """
        answer = self.messages(reply)
        marked = [Message(role=m["role"], content=REPLIED.format(place)) for place, m in enumerate(answer)]
        text = suffix(self.processor, messages, marked)
        contents = {REPLIED.format(place): m["content"] for place, m in enumerate(answer)}
        if any(self._holds_mark(content) for content in contents.values()):
            return self._apart(text, contents)
        # The usual case: written and tokenized as a whole, as the template writes it and a chat server would read it.
        return self._tokens(suffix(self.processor, messages, answer))

    def prompt(self, record: Record, said: int, tools: Sequence[dict[str, Any]] = ()) -> Prompt:
        """The record's prompt, whose last `said` messages are an environment's: their texts are never read as special tokens.

        `tools`: schemas of functions that this prompt tells of besides those of the run.

        For a model that reads media the whole is tokenized by its own program; there such a token in a text is broken by a space
        of no width.
        """
        if tools:
            return self._telling(json.dumps(tools)).prompt(record, said)
        first, last = (
            record.messages[: len(record.messages) - said],
            record.messages[len(record.messages) - said :],
        )
        contents = {REPLIED.format(place): str(m["content"]) for place, m in enumerate(last)}
        if not any(map(self._holds_mark, contents.values())):
            return self.processor.prompt(record)
        if self.processor.media is not None:
            broken = [Message(role=m["role"], content=self._broken(str(m["content"]))) for m in last]
            return self.processor.prompt(replace(record, messages=[*first, *broken]))
        marked = [Message(role=m["role"], content=mark) for m, mark in zip(last, contents, strict=True)]
        text = self.processor.rendered([*first, *marked])
        tokens = [*self.processor.begin(), *self._apart(text, contents)]
        return Prompt(record.id, tokens, record.messages, record.target, record.source)

    def messages(self, reply: Sequence[Mapping[str, str]]) -> list[Message]:
        """The messages of a reply as the template writes them: in roles that it knows, that of the user where one names none, and
        neighbours that it does not write one behind the other as one message."""
        found: list[Message] = []
        for message in reply:
            role = self._role(message["role"] or "user")
            if found and (found[-1]["role"], role) not in self.pairs:
                found[-1] = Message(
                    role=found[-1]["role"], content=f"{found[-1]['content']}\n{message['content']}"
                )
            else:
                found.append(Message(role=role, content=message["content"]))
        return found

    def opening(self, row: Sequence[Message], first: Sequence[Mapping[str, str]]) -> list[Message]:
        """The messages of a row and what its environment says first, the user's where that names no role. Of two neighbours in one role
        that the template does not write so, one message is made."""
        found = list(row)
        for message in first:
            role, before = message["role"] or "user", found[-1] if found else None
            alike = before is not None and before["role"] == role != "assistant"
            if (
                before is not None
                and alike
                and (role, role) not in self.pairs
                and isinstance(before["content"], str)
            ):
                found[-1] = Message(role=role, content=f"{before['content']}\n{message['content']}")
            else:
                found.append(Message(role=role, content=message["content"]))
        return found

    def _role(self, role: str) -> str:
        if role in self.roles:
            return role
        other = "user" if "user" in self.roles else "tool"
        if role not in ("tool", "user"):
            _warn_once(role, other)
        return other

    def _telling(self, tools: str) -> TurnTemplate:
        """The template in prompts that tell of these tools besides, a list of schemas as JSON."""
        if tools not in self._told:
            told = copy(self.processor)
            announce(told, [*told.tools, *json.loads(tools)], "json")
            self._told[tools] = turn_template(told)
        return self._told[tools]

    @cached_property
    def _told(self) -> dict[str, TurnTemplate]:
        return {}

    def cut(self, content: str, most: int) -> str:
        """A text of at most about so many tokens: a longer one is cut in its middle, with a mark."""
        tokens = self._as_text(content)
        if len(tokens) <= most:
            return content
        decode = self.processor.tokenizer.decode
        head, tail = tokens[: (most + 1) // 2], tokens[len(tokens) - most // 2 :]
        return f"{decode(head)}{CUT}{decode(tail) if tail else ''}".replace("\ufffd", "")

    @cached_property
    def _all_marks(self) -> re.Pattern[str]:
        known = self.processor.tokenizer.added_tokens_decoder.values()
        return _any_of({SAID, *self.marks, *(str(token) for token in known if token.special)})

    def _holds_mark(self, content: str) -> bool:
        return self._all_marks.search(content) is not None

    def _broken(self, content: str) -> str:
        return self._all_marks.sub(lambda mark: f"{mark[0][0]}\u200b{mark[0][1:]}", content)

    def _apart(self, text: str, contents: Mapping[str, str]) -> list[int]:
        """Tokens of the template's own text, and of the contents with special tokens read as ordinary text."""
        found: list[int] = []
        for mark, content in contents.items():
            own, _, text = text.partition(mark)
            found += self._tokens(own)
            found += self._as_text(content)
        return found + self._tokens(text)

    def _as_text(self, content: str) -> list[int]:
        """Tokens of a text in which special tokens are ordinary text, and so are marks of turns, which fall into two pieces."""
        ends = [mark.start() + 1 for mark in _any_of(self.marks).finditer(content)] if self.marks else []
        read, found = self.processor.tokenizer, list[int]()
        for start, end in pairwise([0, *ends, len(content)]):
            piece = read(content[start:end], add_special_tokens=False, split_special_tokens=True)
            found += piece["input_ids"]
        return found

    def _tokens(self, text: str) -> list[int]:
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def suffix(processor: Processor, messages: Sequence[Message], reply: Sequence[Message]) -> str:
    """The text that the template writes after an assistant's words, replies and the next turn's beginning included.

    ValueError for a template that leaves those words out.
    """
    whole = processor.rendered([*messages, Message(role="assistant", content=SAID), *reply])
    _, found, after = whole.rpartition(SAID)
    if not found:
        raise ValueError("the chat template leaves out what the assistant says.")
    return after


def turn_template(processor: Processor) -> TurnTemplate:
    """How the model's template joins turns. ValueError, with the cure, for one that cannot: it leaves replies out, refuses
    them, or writes them otherwise after other turns."""
    told = {role: _wrong(processor, [role]) for role in ROLES}
    roles = frozenset(role for role, wrong in told.items() if not wrong)
    if not roles & {"tool", "user"}:
        raise ValueError(
            f"the model's chat template cannot join turns: {told['user']}. Set model.chat_template to a Jinja file that can."
        )
    pairs = frozenset(pair for pair in product(roles, roles) if not _wrong(processor, pair))
    return TurnTemplate(processor, roles, pairs, _marks(processor))


@cache
def _warn_once(role: str, other: str) -> None:
    log.warning(
        "the environment says messages of role %s, which the chat template does not write between turns; they are written as the %s's",
        role,
        other,
    )


def announce(processor: Processor, schemas: Sequence[dict[str, Any]], calls: str) -> None:
    """Lets every prompt tell of these tools: as the chat template does it or, where it does not or calls are written as tags, in the
    system message."""
    processor.tools, question = list(schemas), [Message(role="user", content="?")]
    told = processor.rendered(question)
    if calls != "json" or not all(str(schema["function"]["name"]) in told for schema in schemas):
        processor.tools = []
        lines = [json.dumps(schema["function"], ensure_ascii=False) for schema in schemas]
        processor.preamble = "\n".join(["You can call these functions:", *lines, HOW[calls]])


def _marks(processor: Processor) -> frozenset[str]:
    """The tokens of the template's own text, of turns in every role, that are neither special nor in the vocabulary of texts."""
    system, asked, said, replied = (
        Message(role=role, content=SAID) for role in ("system", "user", "assistant", "tool")
    )
    own = ""
    for talk in ([system, asked], [asked, said, asked], [asked, said, replied]):
        with suppress(TemplateError, ValueError, TypeError):  # a role that the template refuses
            own += processor.rendered(talk)
    known = processor.tokenizer.added_tokens_decoder.values()
    # A line break or a letter can be an added token, too; no template tells turns apart by it alone.
    return frozenset(
        str(token)
        for token in known
        if not token.special and len(str(token).strip()) > 1 and str(token) in own
    )


def _any_of(marks: Collection[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)))


def _wrong(processor: Processor, roles: Sequence[str]) -> str:
    """Why the template cannot take a reply of messages in these roles; empty if it can."""
    question = Message(role="user", content="How far?")
    reply = [Message(role=role, content=REPLIED.format(place)) for place, role in enumerate(roles)]
    longer = [question, Message(role="assistant", content="x"), Message(role=roles[0], content="y")]
    try:
        found = [suffix(processor, before, reply) for before in ([question], longer)]
    except (TemplateError, ValueError, TypeError) as error:
        return f"it refuses a message of role {roles[-1]} after the assistant's ({error})"
    if not all(str(message["content"]) in found[0] for message in reply):
        return f"it leaves out messages of role {roles[-1]}"
    return (
        "" if found[0] == found[1] else f"it writes a message of role {roles[-1]} otherwise after other turns"
    )
