"""Preference pairs: two answers to one conversation, of which the first was preferred; any modality."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lightrft.config import TaskConfig
from lightrft.datasets.conversations import ROLES
from lightrft.datasets.formats import UNREAD_OF_ROW, Example, field, messages_of, refuse_unread
from lightrft.datasets.media import filled
from lightrft.datasets.sources import Row
from lightrft.types import Message

TURN = re.compile(r"\n\n(Human|Assistant): ?")
"""How a transcript of HH-RLHF marks who speaks (Bai et al. 2022, https://arxiv.org/abs/2204.05862)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What was asked, and two ways to go on from there."""

    prompt: list[Message]
    chosen: list[Message]
    """One turn of the assistant, or several turns that begin and end with one."""
    rejected: list[Message]


def pair(row: Row, config: TaskConfig) -> Pair:
    """A row's pair, in the first of these layouts whose fields are there:

    `conversations` (from, value) with `chosen` and `rejected`, one turn each; the prompt field, text or messages, with
    `chosen` and `rejected`; these two alone, whole conversations as messages or as transcripts ("\\n\\nHuman: ...
    \\n\\nAssistant: ..."), which part where they differ. Columns with media are put where the prompt wants them (`filled`).
    ValueError for a row without a layout, without an answer, or whose answers are the same.
    """
    refuse_unread(row, UNREAD_OF_ROW, "the row")
    chosen, rejected = (_turns(field(row, name), name) for name in ("chosen", "rejected"))
    asked = row.get("conversations") or row.get(config.prompt_field)
    if asked:
        prompt = [Message(role="user", content=asked)] if isinstance(asked, str) else _turns(asked, "prompt")
        chosen, rejected = (_after(prompt, side) for side in (chosen, rejected))
    else:
        prompt, chosen, rejected = _parted(chosen, rejected)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[0]["role"] != "assistant" or side[-1]["role"] != "assistant":
            raise ValueError(
                f"field '{name}' is no response of the assistant to what both sides have in common."
            )
    if chosen == rejected:
        raise ValueError("fields 'chosen' and 'rejected' say the same, so that nothing is preferred.")
    if not any(message["role"] == "user" for message in prompt):
        raise ValueError("nobody asks anything before the responses part.")
    return Pair(filled(prompt, row), chosen, rejected)


def chosen(row: Row, config: TaskConfig) -> Example:
    """A format for `lightrft sft`: what was preferred is what is learned."""
    found = pair(row, config)
    return Example(found.prompt, found.chosen)


def _turns(value: Any, name: str) -> list[Message]:
    """Messages from any way to write them."""
    if isinstance(value, str):
        pieces = TURN.split(value)
        if len(pieces) == 1:
            return [Message(role="assistant", content=value)]
        speakers = {"Human": "user", "Assistant": "assistant"}
        return [
            Message(role=speakers[who], content=text)
            for who, text in zip(pieces[1::2], pieces[2::2], strict=True)
        ]
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"field '{name}' must be text, a message or a list of messages, not {value!r:.80}")
    return messages_of([_plainly(turn) for turn in turns], name)


def _plainly(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn with role and content, where it has from and value instead."""
    speaker = turn.get("from")
    role = turn.get("role", ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker)
    return {**turn, "role": role, "content": turn.get("content", turn.get("value"))}


def _after(prompt: list[Message], side: list[Message]) -> list[Message]:
    """A side without the prompt, which some rows repeat."""
    return side[len(prompt) :] if side[: len(prompt)] == prompt else side


def _parted(one: list[Message], other: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """What two conversations have in common, at most all but the last turn of each, and how each goes on."""
    most = min(len(one), len(other)) - 1
    same = next((place for place in range(most) if one[place] != other[place]), most)
    return one[:same], one[same:], other[same:]
