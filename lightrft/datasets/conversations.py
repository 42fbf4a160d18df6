"""Conversations to learn from: rows to turns, turns to a prompt and the tokens that follow it, marked where they are learned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from lightrft.config import SFTConfig, TaskConfig
from lightrft.datasets.formats import (
    ALPACA,
    SPEAKERS,
    Example,
    complete,
    field,
    messages_of,
    optional,
    questioned,
    refuse_lost,
    refuse_two,
    text_field,
)
from lightrft.datasets.prompts import prepare
from lightrft.datasets.sources import BadRecords, Row
from lightrft.types import Finish, Message, Prompt, Record, Trajectory

if TYPE_CHECKING:
    from lightrft.models.processor import Processor

ROLES = SPEAKERS | {"user": "user", "assistant": "assistant"}
"""What ShareGPT rows call a speaker -> role."""

log = logging.getLogger("lightrft")


class Answer(NamedTuple):
    """What follows a prompt: the target of the prompts that `Conversations` makes."""

    token_ids: list[int]
    mask: list[bool]
    """True on what the assistant says, its end token included; False on the turns between."""
    finish: Finish


def conversation(row: Row, config: TaskConfig) -> Example:
    """A format for rows that hold whole conversations, in the first of these layouts whose fields are there:

    `messages` (role, content), `conversations` (from, value), the prompt field with `completion`, `response` or the target
    field, `instruction` (and `input`) with `output`. Text, or lists of messages where a prompt may be one. A field `system`
    comes first; columns with media are put where they belong (`filled`). The target is the list of messages from the
    assistant's first turn on.
    """
    talk = complete(_turns(row, config), row, config.prompt_field)
    first = next((place for place, turn in enumerate(talk) if turn["role"] == "assistant"), None)
    if first is None:
        raise ValueError("no message is the assistant's, so there is nothing to learn.")
    if all(turn["role"] == "system" for turn in talk[:first]):
        raise ValueError("the assistant speaks first; a conversation begins with what it answers.")
    return Example(talk[:first], talk[first:])


def _turns(row: Row, config: TaskConfig) -> list[Message]:
    if row.get("messages") is not None:
        refuse_lost(row, "messages", row["messages"])
        return messages_of(row["messages"], "messages")
    if row.get("conversations") is not None:
        refuse_lost(row, "conversations", row["conversations"])
        return _shared(row["conversations"])
    prompt = optional(row, config.prompt_field)
    for answer in dict.fromkeys((config.target_field, "completion", "response")):
        if prompt is not None and optional(row, answer) is not None:
            return [*_asking(row, config.prompt_field), *_said(row, answer)]
    if row.get(ALPACA) is not None:
        if prompt is not None:
            refuse_two(row, config.prompt_field, prompt)
        return [*_asking(row, ALPACA), *_said(row, "output")]
    raise ValueError(
        f"no layout fits; the row has: {', '.join(row)}. It needs messages, conversations, {config.prompt_field} with completion or "
        "response, or instruction with output. Set tasks.prompt_field and tasks.target_field, or tasks.format."
    )


def _asking(row: Row, name: str) -> list[Message]:
    """A field that asks: a text, see `questioned`, or a list of messages."""
    value = field(row, name)
    refuse_lost(row, name, value)
    return (
        messages_of(value, name) if isinstance(value, list) else questioned(text_field(row, name), row, name)
    )


def _said(row: Row, name: str) -> list[Message]:
    """A field that holds what the assistant says, or a list of messages."""
    value = field(row, name)
    if isinstance(value, list):
        return messages_of(value, name)
    return [Message(role="assistant", content=text_field(row, name))]


def _shared(value: Any) -> list[Message]:
    """Turns as ShareGPT writes them."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise ValueError(f"field 'conversations' must be a list of turns, not {value!r:.80}")
    odd = [
        turn.get("from")
        for turn in value
        if not isinstance(turn.get("from"), str) or turn["from"] not in ROLES
    ]
    if odd:
        raise ValueError(f"field 'conversations': a turn is from '{odd[0]}'; known are {', '.join(ROLES)}.")
    turns = [{**turn, "role": ROLES[turn["from"]], "content": turn.get("value")} for turn in value]
    return messages_of(turns, "conversations")


def whole(record: Record, gold: Callable[[Record], str]) -> list[Message]:
    """A record's conversation: its target where that is a list of messages, else the gold answer, follows the question."""
    target = record.target
    if isinstance(target, list) and target and all(isinstance(t, Mapping) and "role" in t for t in target):
        return [*record.messages, *target]
    return [*record.messages, Message(role="assistant", content=gold(record))]


@dataclass(slots=True)
class Kept:
    """What became of the answers of one split."""

    too_long: int = 0
    """Skipped, being over max_tokens."""
    truncated: int = 0
    """Kept, after tokens were cut from the end."""
    broken: int = 0
    """Skipped, because the chat template cannot lay them out turn by turn."""


@dataclass(frozen=True)
class Conversations:
    """Makes records into prompts whose target is an `Answer`."""

    processor: Processor
    config: SFTConfig
    ending: int
    """The token that the chat template puts after an answer."""

    @classmethod
    def of(cls, processor: Processor, config: SFTConfig) -> Conversations:
        """The maker for a processor, whose template is checked, see `checked_ending`."""
        return cls(processor, config, checked_ending(processor))

    def prompts(self, records: Iterable[Record], gold: Callable[[Record], str]) -> tuple[list[Prompt], Kept]:
        """In the records' order. What is too long or broken is treated as the settings say; ValueError if none is left."""
        bad, kept = BadRecords(self.config.tasks.on_bad_record), Kept()
        asked: list[Record] = []
        for record in records:
            try:
                found = self._asked(whole(record, gold), record)
            except (
                ValueError,
                TypeError,
                AttributeError,
                TemplateError,
            ) as error:  # a row's, or the template's about it
                bad(str(error) if record.id in str(error) else f"{record.id}: {error}")
                continue
            answer = self._fitting(found.target, record.id, kept)
            if answer is not None:
                asked.append(replace(found, target=answer))
        kept.broken = bad.skipped
        if kept.too_long or kept.truncated:
            log.warning(
                "responses over max_tokens=%d: %d skipped, %d truncated",
                self.config.max_tokens, kept.too_long, kept.truncated,
            )  # fmt: skip
        if not asked:
            raise ValueError(
                f"no conversation is left: {kept.too_long} have responses over max_tokens={self.config.max_tokens}, {kept.broken} are broken. "
                "Raise max_tokens, or set on_long_response=truncate."
            )
        return prepare(asked, self.processor, self.config.tasks)[0], kept

    def _asked(self, talk: Sequence[Message], record: Record) -> Record:
        """The record cut before the first turn that is learned; its target is the answer."""
        spoken = [place for place, turn in enumerate(talk) if turn["role"] == "assistant"]
        if not spoken:
            raise ValueError("no message is the assistant's, so there is nothing to learn.")
        turns = spoken if self.config.train_on == "all_turns" else spoken[-1:]
        return Record(
            record.id,
            list(talk[: turns[0]]),
            answer_to(self.processor, talk, turns, self.ending),
            record.source,
        )

    def _fitting(self, answer: Answer, name: str, kept: Kept) -> Answer | None:
        length, most = len(answer.token_ids), self.config.max_tokens
        if length <= most:
            return answer
        if self.config.on_long_response == "raise":
            raise ValueError(
                f"{name}: what follows the prompt has {length} tokens, max_tokens={most}. Raise that, or set on_long_response to skip or "
                "truncate."
            )
        if self.config.on_long_response == "skip":
            kept.too_long += 1
            return None
        kept.truncated += 1
        return Answer(answer.token_ids[:most], answer.mask[:most], "length")


def checked_ending(processor: Processor) -> int:
    """The token that the chat template puts after a response.

    ValueError if it opens a response otherwise than it writes one or never ends it, a warning if it ends it with a token that stops
    nothing.
    """
    opened, closed = _probe(processor)
    if closed[: len(opened)] != opened:
        raise ValueError(
            "the chat template opens a response otherwise than it writes one, so that a model would not be prompted the way it learned. "
            "Set model.chat_template to one that does both alike."
        )
    ending = end_of_answer(processor)
    if ending is None:
        raise ValueError(
            "the chat template puts no end token after a response, so that the model would never learn to stop. Set "
            "model.chat_template to a Jinja file that ends each message with the tokenizer's end token."
        )
    if ending not in processor.stop_ids:
        log.warning(
            "the chat template ends a response with token %d, %r, which does not stop generation. Add it to eos_token_id in the "
            "model's generation_config.json.",
            ending, processor.pieces([ending])[0],
        )  # fmt: skip
    return ending


def answer_to(processor: Processor, talk: Sequence[Message], turns: Sequence[int], ending: int) -> Answer:
    """The tokens after the first of `turns` is opened, until the last of them is closed.

    Each turn is what the template adds to the conversation before it, so that the tokens are those that a model
    would have read and written, had it taken part. `ending`: the token after a turn, see `checked_ending`.
    """
    refuse_media(talk, first=turns[0], last=turns[-1])
    start, so_far, mask = 0, list[int](), list[bool]()
    for turn in turns:
        between = processor.between(so_far, talk[:turn], instead="train_on=last_turn, or ")
        opened = so_far + between
        said = processor.said(opened, talk[: turn + 1], ending)
        mask += [False] * len(between) + [True] * len(said)
        start, so_far = start or len(opened), opened + said
    return Answer(so_far[start:], mask[start:], "stop")


def refuse_media(talk: Sequence[Message], *, first: int, last: int) -> None:
    """ValueError if a message from place `first` to `last` holds a picture, clip or sound: only a prompt may."""
    for place in range(first, last + 1):
        content = talk[place]["content"]
        parts = (
            [] if isinstance(content, str) else [p.get("type") for p in content if p.get("type") != "text"]
        )
        if parts and talk[place]["role"] == "assistant":
            raise ValueError(
                f"message {place} is a response to learn and holds a medium ({parts[0]}), and a language model writes text alone. Take a diffusion "
                "pipeline as model.path, which learns to draw pictures, or leave such rows out (tasks.on_bad_record=skip)."
            )
        if parts:
            raise ValueError(
                f"message {place} holds a medium ({parts[0]}) after a response that is learned from; media may stand only before it. "
                "Set train_on=last_turn."
            )


def end_of_answer(processor: Processor) -> int | None:
    """The special token that the template puts right after an answer, None if there is none."""
    opened, closed = _probe(processor)
    special = set(processor.tokenizer.all_special_ids) | set(processor.tokenizer.get_added_vocab().values())
    return next((token for token in closed[len(opened) :] if token in special), None)


def _probe(processor: Processor) -> tuple[list[int], list[int]]:
    """A question where the assistant is to speak, and the same with its answer."""
    talk = [Message(role="user", content="question"), Message(role="assistant", content="answer")]
    return processor.tokens(talk[:1]), processor.tokens(talk, answer_next=False)


def demonstration(prompt: Prompt, group: int) -> Trajectory:
    """A prompt of `Conversations` as a trajectory: what was said, and which tokens are learned."""
    answer: Answer = prompt.target
    return Trajectory(
        prompt=prompt,
        group=group,
        token_ids=answer.token_ids,
        mask=answer.mask,
        behavior=[0.0] * len(answer.token_ids),
        finish=answer.finish,
    )
