"""The source of one picture, clip or sound: what it can be, what it is called, and the file or the bytes of it.

A source is a path, a URL, bytes, {"bytes": ..., "path": ...}, a PIL picture, an array, a list of pictures (a clip), or
Made. Nothing is read before `picture`, `clip` or `sound` is called; every failure is a MediaError naming the source.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from lightrft.media.fetch import STANDARD, Limits, MediaError, fetched

__all__ = [
    "LONGEST_NAME",
    "STANDARD",
    "URLS",
    "Limits",
    "Made",
    "MediaError",
    "file_of",
    "label",
    "made",
    "stated_rate",
]

URLS = ("http://", "https://", "data:")
LONGEST_NAME = 1024
"""Characters of a path; a longer text is a medium itself (base64), and is not repeated in messages."""
HIGHEST_RATE = 10_000_000
"""Samples or frames per second beyond which a rate is no rate."""


@dataclass(frozen=True)
class Made:
    """A medium that is made only when it is needed, such as a rendered sound or a window of a clip."""

    name: str
    """What messages and logs call it."""
    make: Callable[[], Any]
    """Returns any other source; the same one at every call."""


def label(source: Any) -> str:
    """What to call a source: its path, its URL, its name, or what kind of thing it is."""
    if isinstance(source, Mapping):
        return str(source.get("path") or f"a dict with {', '.join(map(str, source))}")
    if isinstance(source, str) and source.startswith("data:"):
        return f"{source[:24]}..."
    if isinstance(source, str | Path):
        return str(source) if len(str(source)) <= LONGEST_NAME else f"{str(source)[:24]}..."
    return source.name if isinstance(source, Made) else type(source).__name__


def made(source: Any) -> tuple[Any, str]:
    """The source that a Made makes, any other as it is, and what it is called."""
    name = label(source)
    while isinstance(source, Made):
        source = source.make()
    return source, name


def file_of(source: Any, name: str, limits: Limits = STANDARD) -> str | io.BytesIO:
    """A path that exists, or the bytes, of something that is not empty."""
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, str) and source.startswith(URLS):
        source = fetched(source, name, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise MediaError(f"{name}: no bytes in it.")
        return io.BytesIO(source)
    if not isinstance(source, str | Path):
        raise MediaError(f"{name}: a {type(source).__name__} is not a source of a picture, clip or sound.")
    if isinstance(source, str) and source.startswith("file://"):
        source = unquote(urlparse(source).path)
    try:
        path = Path(source).expanduser()
        found = path.is_file()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a text too long for a name, an unknown user, a zero byte
        raise MediaError(
            f"{name}: no name of a file ({error.args[-1]!s:.80}). Give a path, a URL, or bytes."
        ) from None
    if not found:
        raise MediaError(f"{name}: no such file (looked for {path.absolute()}).")
    if not path.stat().st_size:
        raise MediaError(f"{name}: the file is empty.")
    return str(path)


def stated_rate(stated: Any, name: str) -> float:
    """A rate as a finite number, 0 for none; resamplers never end with others."""
    if stated is None:
        return 0
    if isinstance(stated, bool) or not isinstance(stated, int | float | np.number):
        raise MediaError(f"{name}: the rate is {stated!r:.40}, which is not a number.")
    if not math.isfinite(stated) or not 0 <= stated <= HIGHEST_RATE:
        raise MediaError(
            f"{name}: the rate is {stated}; it must be a number above 0, at most {HIGHEST_RATE}."
        )
    return stated  # type: ignore[return-value]  # a number of numpy is one
