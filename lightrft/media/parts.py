"""Pictures, clips and sounds inside messages: finding them, naming them, and reading them when a question is drawn.

A message's content is text, or a list of parts: {"type": "text", "text": ...}, and for each KIND {"type": KIND, KIND:
source}. What a source can be is told in media/sources.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.typing import NDArray

from lightrft.media.clips import Clip, clip
from lightrft.media.pictures import picture
from lightrft.media.sounds import sound
from lightrft.media.sources import STANDARD, URLS, Limits, Made, MediaError, label

__all__ = [
    "KINDS",
    "Clip",
    "Limits",
    "Made",
    "Media",
    "MediaError",
    "described",
    "has_media",
    "located",
    "outside",
    "parts",
    "read_media",
    "readable",
]

KINDS = ("image", "video", "audio")
"""Types of parts that are not text; the source stands under the same name."""

AnyMessage = Mapping[str, Any]


@dataclass(frozen=True)
class Media:
    """What the messages of one question hold, decoded, each kind in the messages' order."""

    images: list[Any]
    """PIL pictures in RGB."""
    videos: list[Clip]
    audios: list[NDArray[np.float32]]
    """(n,) each, mono, at the rate that was asked for."""


def parts(messages: Sequence[AnyMessage]) -> list[tuple[str, Any]]:
    """Kind and source of every part that is not text, in order; reads none.

    ValueError for a part of unknown type, and for one without its text or source.
    """
    return [
        (part["type"], part[part["type"]])
        for message in messages
        for part in _checked(message["content"])
        if part["type"] != "text"
    ]


def has_media(messages: Sequence[AnyMessage]) -> bool:
    """Whether any part is not text. ValueError as from `parts`."""
    return bool(parts(messages))


def located(messages: Sequence[AnyMessage], folder: Path) -> list[dict[str, Any]]:
    """Messages with relative paths below `folder`; URLs, bytes and objects stay as they are. Reads nothing."""
    return _with_sources(messages, lambda source: _located(source, folder))


def outside(messages: Sequence[AnyMessage], root: Path) -> str | None:
    """The first file that the messages name and that does not lie below `root`; None if all do. Links are not followed."""
    top = Path(os.path.abspath(root.expanduser()))
    for _, source in parts(messages):
        for place in _files(source):
            if not Path(os.path.abspath(place.expanduser())).is_relative_to(top):
                return str(place)
    return None


def _files(source: Any) -> Iterator[Path]:
    if isinstance(source, list | tuple):
        for frame in source:
            yield from _files(frame)
    elif isinstance(source, Mapping):
        if source.get("bytes") is None:
            yield from _files(source.get("path"))
            yield from _files(source.get("frames"))
    elif isinstance(source, Path):
        yield source
    elif isinstance(source, str) and not source.startswith(URLS):
        yield Path(unquote(urlparse(source).path) if source.startswith("file://") else source)


def described(messages: Sequence[AnyMessage], name: Callable[[Any], str] = label) -> list[dict[str, Any]]:
    """Messages with a text for each source, its path, URL or name: for logs, files and other processes. `name`: what it is called."""
    return _with_sources(messages, name)


def readable(content: Any, name: Callable[[Any], str] = label) -> str:
    """A message's content as one text, with [image a.png] for a picture: for people. `name`: what a source is called."""
    if isinstance(content, str):
        return content
    return "".join(
        part["text"] if part["type"] == "text" else f"[{part['type']} {name(part[part['type']])}]"
        for part in _checked(content)
    )


def read_media(
    messages: Sequence[AnyMessage],
    *,
    max_pixels: int,
    fps: float,
    max_frames: int,
    max_seconds: float,
    rate: int,
    limits: Limits = STANDARD,
) -> Media:
    """Decodes every medium of the messages, once. Needs the packages of the extra `media`.

    max_pixels: larger pictures and frames are scaled down, keeping their shape; 0: never.
    fps, max_frames: how many frames are taken of a clip, evenly spaced over all of it.
    max_seconds: longest sound; 0: any.          rate: samples per second that sounds are given at.
    limits: addresses that may be fetched, and sizes beyond which nothing is read.
    Raises MediaError naming the first medium that is missing, empty, broken, cut off, too long or too large, or of
    no known kind.
    """
    media = Media([], [], [])
    for kind, source in parts(messages):
        if kind == "image":
            media.images.append(picture(source, max_pixels=max_pixels, limits=limits))
        elif kind == "video":
            media.videos.append(
                clip(source, fps=fps, max_frames=max_frames, max_pixels=max_pixels, limits=limits)
            )
        else:
            media.audios.append(sound(source, rate=rate, max_seconds=max_seconds, limits=limits))
    return media


def _checked(content: Any) -> list[dict[str, Any]]:
    """The parts of a content; none if it is text. What a table without gaps adds as null is left out."""
    if isinstance(content, str):
        return []
    if not isinstance(content, list | tuple):
        raise ValueError(
            f"a message's content is a {type(content).__name__}; it must be text or a list of parts."
        )
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", *KINDS):
            raise ValueError(
                f"a part of a message has the type {kind!r}; there are: text, {', '.join(KINDS)}."
            )
        if part.get(kind) is None:
            raise ValueError(f'a part of type {kind} lacks its source: {{"type": "{kind}", "{kind}": ...}}.')
        if kind == "text" and not isinstance(part["text"], str):
            raise ValueError(f"a part of type text holds a {type(part['text']).__name__}.")
    return [{"type": part["type"], part["type"]: part[part["type"]]} for part in content]


def _with_sources(messages: Sequence[AnyMessage], change: Callable[[Any], Any]) -> list[dict[str, Any]]:
    changed = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                part if part["type"] == "text" else {**part, part["type"]: change(part[part["type"]])}
                for part in _checked(content)
            ]
        changed.append({**message, "content": content})
    return changed


def _located(source: Any, folder: Path) -> Any:
    if isinstance(source, list | tuple):
        return [_located(frame, folder) for frame in source]
    if isinstance(source, Mapping):
        has_bytes = source.get("bytes") is not None or not source.get("path")
        return source if has_bytes else {**source, "path": _located(source["path"], folder)}
    if isinstance(source, str) and not source.startswith((*URLS, "~", "file://")):
        return str(folder / source)
    return folder / source if isinstance(source, Path) else source
