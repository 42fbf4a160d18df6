"""Pictures, clips and sounds of a row, put where its messages want them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from lightrft.datasets.sources import Row
from lightrft.media.parts import KINDS
from lightrft.types import Message

MARK = re.compile("<(image|video|audio)>")
"""Where a medium belongs in a text."""
COLUMNS = frozenset(name for kind in KINDS for name in (kind, f"{kind}s"))
"""Fields of a row that hold media."""


def filled(messages: Sequence[Message], row: Row, *, newest: bool = False) -> list[Message]:
    """The messages with the media of the row's columns: image or images, video or videos, audio or audios.

    They take, in order, the places of <image>, <video> and <audio> in texts, and of parts without a source
    ({"type": "image"}). Media of a kind that has no place come first in the first message of the user, `newest`: in the last one,
    pictures before clips before sounds. A row without any such column is left as it is, whatever its texts say.
    ValueError naming both numbers where places and media differ.
    """
    if COLUMNS.isdisjoint(row):
        return list(messages)
    media = {kind: _column(row, kind) for kind in KINDS}
    split = [_split(message["content"]) for message in messages]
    loose = []
    for kind, sources in media.items():
        places = sum(_is_place(part, kind) for parts in split for part in parts)
        if (
            sources
            and not places
            and any(part.get("type") == kind for parts in split for part in parts if isinstance(part, dict))
        ):
            raise ValueError(
                f"the messages hold their own {kind}, and the row has a column with {kind} too. Leave one out."
            )
        if not places:
            loose += [{"type": kind, kind: source} for source in sources]
        elif places != len(sources):
            raise ValueError(f"the messages have {places} places for {kind}, the row has {len(sources)}.")
    if loose:
        users = [n for n, message in enumerate(messages) if message["role"] == "user"] or [0]
        place = users[-1 if newest else 0]
        split[place] = [*loose, *split[place]]
    waiting = {kind: iter(sources) for kind, sources in media.items()}
    return [_refilled(message, parts, waiting) for message, parts in zip(messages, split, strict=True)]


def shown(asked: Sequence[Message], said: Sequence[Message]) -> list[Message]:
    """How a response that is a picture, a clip or a sound is shown to a model that scores it: at the end of the last turn of the user.

    Few chat templates write media where the assistant speaks. `said`: the response, one message. ValueError for several, and
    where the user does not have the last word before.
    """
    if len(said) != 1 or not asked or asked[-1]["role"] != "user":
        raise ValueError(
            "a response with media must be one message, and what the user says must stand before it."
        )
    parts = [as_parts(message["content"]) for message in (asked[-1], said[0])]
    return [*asked[:-1], Message(role="user", content=[*parts[0], *parts[1]])]


def as_parts(content: Any) -> list[dict[str, Any]]:
    """The content of a message as parts, of which text is one."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _column(row: Row, kind: str) -> list[Any]:
    """The sources in `image` or `images`. A list under `video` is the frames of one clip, under other names several media."""
    one, several = row.get(kind), row.get(f"{kind}s")
    if one is not None and several is not None:
        raise ValueError(f"the row has both '{kind}' and '{kind}s'. Leave one of them out.")
    if several is not None:
        return list(several) if isinstance(several, list | tuple) else [several]
    if one is None:
        return []
    return list(one) if kind != "video" and isinstance(one, list | tuple) else [one]


def _split(content: Any) -> list[dict[str, Any]]:
    """Content as parts, each place for a medium a part without source."""
    if not isinstance(content, str):
        return list(content)
    pieces = MARK.split(content)
    texts = [{"type": "text", "text": text} for text in pieces[::2]]
    places = [{"type": kind} for kind in pieces[1::2]]
    parts = [part for pair in zip(texts, [*places, {}], strict=True) for part in pair]
    return [part for part in parts if part and part.get("text") != ""]


def _is_place(part: Any, kind: str) -> bool:
    return isinstance(part, dict) and part.get("type") == kind and part.get(kind) is None


def _refilled(message: Message, parts: list[dict[str, Any]], waiting: dict[str, Iterator[Any]]) -> Message:
    """The message with these parts; as it was if it is text alone."""
    if all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        return message
    return Message(role=message["role"], content=[_with_source(part, waiting) for part in parts])


def _with_source(part: Any, waiting: dict[str, Iterator[Any]]) -> Any:
    if not any(_is_place(part, kind) for kind in KINDS):
        return part
    return {"type": part["type"], part["type"]: next(waiting[part["type"]])}
