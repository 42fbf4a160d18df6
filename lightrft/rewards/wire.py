"""Pictures, clips and sounds in a request for rewards: each once, as bytes in base64, in a table beside the responses.

A part of a message names its place in that table. Nothing in a request is a path or an address, so a server has nothing to look for.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightrft.media.parts import KINDS, readable
from lightrft.media.sounds import sound
from lightrft.media.sources import STANDARD, Limits, MediaError, file_of, made, stated_rate
from lightrft.types import Message
from lightrft.utils.imports import require

MOST_MEDIA = 1024
"""Media of one request."""
MOST_IN_ANSWER = 64
"""Media in the messages of one response."""
MOST_FRAMES = 512
"""Pictures of a clip that is sent as such."""
LONGEST_NAME = 200
"""Characters of the name of a medium that are kept."""
MOST_RATE = 1000.0
CLIPS = ((4, b"ftyp"), (4, b"moov"), (4, b"mdat"), (4, b"wide"), (4, b"free"), (0, b"\x1aE\xdf\xa3"), (8, b"AVI "), (0, b"OggS"),
         (0, b"FLV"), (0, b"GIF8"), (0, b"\x00\x00\x01\xba"))  # fmt: skip
"""Where and how files of clips begin that are read here: none of them is a list of other files, which FFmpeg would open."""


class Sent:
    """The media of one request, each once."""

    def __init__(self, limits: Limits = STANDARD) -> None:
        """`limits`: what may be fetched, and how large a medium may be."""
        self.table: list[dict[str, Any]] = []
        self.size = 0
        """Characters that they take."""
        self._limits, self._places, self._held = limits, dict[tuple[str, Any], int](), list[Any]()

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages as they are sent. MediaError for a medium that cannot be read."""
        found = []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                content = [self._part(part) for part in content]
            found.append({**message, "content": content})
        return found

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        return dict(part) if kind == "text" else {"type": kind, kind: self._place(kind, part[kind])}

    def _place(self, kind: str, source: Any) -> int:
        key = kind, source if isinstance(source, str) else id(source)
        if key not in self._places:
            entry = packed(kind, source, self._limits)
            self._held.append(source)  # so that no other object gets its id
            self._places[key] = len(self.table)
            self.table.append(entry)
            self.size += sum(map(len, entry.get("frames", ()))) + len(entry.get("base64", ""))
        return self._places[key]


def named(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the name of each medium in its place."""
    found = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [{"type": "text", "text": readable([part])} for part in content]
        found.append({**message, "content": content})
    return found


def packed(kind: str, source: Any, limits: Limits = STANDARD) -> dict[str, Any]:
    """A medium as an entry of the table. MediaError for one that cannot be read, or that is larger than media.max_megabytes."""
    source, name = made(source)
    entry: dict[str, Any] = {"name": name[:LONGEST_NAME]}
    if kind == "video" and (frames := _frames(source)) is not None:
        if not 0 < len(frames) <= MOST_FRAMES:
            raise MediaError(
                f"{name}: {len(frames)} frames; 1 to {MOST_FRAMES} can be sent. Give the file of the clip."
            )
        entry["frames"] = [_written(_picture_bytes(one, name, limits), name, limits) for one in frames]
        if isinstance(source, Mapping) and source.get("fps"):
            entry["fps"] = float(stated_rate(source["fps"], name))
        return entry
    if kind == "audio" and isinstance(source, Mapping) and source.get("array") is not None:
        content = _sound_bytes(source, name, limits)
    elif kind == "image":
        content = _picture_bytes(source, name, limits)
    else:
        content = _file_bytes(source, name, limits)
    return entry | {"base64": _written(content, name, limits)}


def _frames(source: Any) -> Any:
    """The pictures of a clip that is no file; None for a file."""
    frames = source.get("frames") if isinstance(source, Mapping) else source
    return frames if isinstance(frames, list | tuple | np.ndarray) else None


def _picture_bytes(source: Any, name: str, limits: Limits) -> bytes:
    image_class = require("PIL.Image", "media")
    if isinstance(source, np.ndarray):
        source = image_class.fromarray(np.ascontiguousarray(source))
    if not isinstance(source, image_class.Image):
        return _file_bytes(source, name, limits)
    file = io.BytesIO()
    source.save(file, "PNG")
    return file.getvalue()


def _sound_bytes(source: Mapping[str, Any], name: str, limits: Limits) -> bytes:
    rate = int(stated_rate(source.get("sampling_rate"), name))
    file = io.BytesIO()
    samples = sound(source, rate=rate, max_seconds=0, limits=limits)
    require("soundfile", "media").write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def _file_bytes(source: Any, name: str, limits: Limits) -> bytes:
    found = file_of(source, name, limits)
    if not isinstance(found, str):
        return found.getvalue()
    with open(found, "rb") as file:
        return file.read(int(limits.megabytes * 1e6) + 1)


def _written(content: bytes, name: str, limits: Limits) -> str:
    if len(content) > limits.megabytes * 1e6:
        raise MediaError(
            f"{name}: more than media.max_megabytes={limits.megabytes:g}. Raise that, or leave it out."
        )
    return base64.b64encode(content).decode()


def read_table(table: Any) -> list[dict[str, Any]]:
    """The sources of a request's table, as media/sources.py reads them. ValueError, saying what is wrong, for anything else."""
    if not isinstance(table, list) or len(table) > MOST_MEDIA:
        raise ValueError(f"media: expected a list of at most {MOST_MEDIA}")
    return [_source(entry, place) for place, entry in enumerate(table)]


def _source(entry: Any, place: int) -> dict[str, Any]:
    keys = set(entry) if isinstance(entry, dict) else set()
    if not (keys <= {"base64", "name"} and "base64" in keys) and not (
        keys <= {"frames", "fps", "name"} and "frames" in keys
    ):
        raise ValueError(f"media[{place}]: expected {{base64, name}}, or {{frames, fps, name}} of a clip")
    name = entry.get("name", f"medium {place}")
    if not isinstance(name, str):
        raise ValueError(f"media[{place}]: name: expected a text")
    name = name[:LONGEST_NAME] or f"medium {place}"
    if "base64" in keys:
        return {"bytes": _read(entry["base64"], f"media[{place}]"), "path": name}
    frames, fps = entry["frames"], entry.get("fps")
    if not isinstance(frames, list) or not 0 < len(frames) <= MOST_FRAMES:
        raise ValueError(f"media[{place}]: frames: expected a list of 1 to {MOST_FRAMES}")
    if fps is not None and (
        isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= MOST_RATE
    ):
        raise ValueError(f"media[{place}]: fps: expected a number above 0, at most {MOST_RATE:g}")
    read = [
        {"bytes": _read(one, f"media[{place}].frames[{n}]"), "path": name} for n, one in enumerate(frames)
    ]
    return {"frames": read, "fps": fps, "path": name}


def _read(text: Any, where: str) -> bytes:
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):  # no base64, or no text at all
        raise ValueError(f"{where}: expected bytes in base64") from None
    if not found:
        raise ValueError(f"{where}: there are no bytes in it")
    return found


def resolved(messages: Sequence[Mapping[str, Any]], table: Sequence[dict[str, Any]]) -> list[Message]:
    """Messages with the media that they name. ValueError for a part that is none."""
    count, found = 0, list[Message]()
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [_resolved(part, table) for part in content]
            count += sum(part["type"] != "text" for part in content)
        found.append(Message(role=message["role"], content=content))
    if count > MOST_IN_ANSWER:
        raise ValueError(f"{count} media in the messages; at most {MOST_IN_ANSWER}")
    return found


def _resolved(part: Any, table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind not in KINDS:
        raise ValueError(f"a part of the type {kind!r:.40}; there are text, {', '.join(KINDS)}")
    place = part.get(kind)
    if type(place) is not int or not 0 <= place < len(table):
        raise ValueError(f"{kind}: expected the place of a medium in `media`, which has {len(table)}")
    source = table[place]
    if kind != "video" and "frames" in source:
        raise ValueError(f"{kind}: media[{place}] is a clip")
    if kind == "video" and "frames" not in source and not _is_clip(source["bytes"]):
        raise ValueError(
            f"video: media[{place}] is no file of a clip that is read here: MP4, WebM, Matroska, AVI, Ogg, FLV, GIF, MPEG"
        )
    return {"type": kind, kind: source}


def _is_clip(content: bytes) -> bool:
    return any(content[start : start + len(mark)] == mark for start, mark in CLIPS)
