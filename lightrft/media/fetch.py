"""A medium from an address that a record names: only from hosts that a setting lists, so many bytes, in so much time."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, build_opener, urlopen

from lightrft.utils.deadline import within
from lightrft.utils.errors import RolloutError

PIECE = 1 << 16
"""Bytes that are asked for at a time."""
ANY_HOST = "*"


class MediaError(RolloutError, ValueError):
    """A picture, clip or sound that cannot be used; the text names it and says why."""

    boundary = "media"


@dataclass(frozen=True)
class Limits:
    """What is not read, for a record may be a stranger's."""

    hosts: Collection[str] = ()
    """Hosts that media are fetched from; `*`: any."""
    megabytes: float = 100.0
    """Largest medium that is fetched, 10^6 bytes."""
    seconds: float = 30.0
    """Longest time of one fetch."""
    megapixels: float = 50.0
    """Largest picture or frame, 10^6 pixels."""

    def check_pixels(self, width: int, height: int, name: str) -> None:
        """MediaError for a picture or frame with too many pixels."""
        if width * height > self.megapixels * 1e6:
            raise MediaError(
                f"{name}: {width} x {height} pixels are too many (media.max_megapixels={self.megapixels:g}). Scale it down, or raise that."
            )


STANDARD = Limits()
"""What holds where no settings say otherwise."""


def fetched(url: str, name: str, limits: Limits) -> bytes:
    """The bytes at an address, or in a data: URL. MediaError if the host is not listed, or it is too much, too slow or not there."""
    if url.startswith("data:"):
        with urlopen(url) as response:
            return bytes(response.read())
    _check_host(url, name, limits)
    late = MediaError(f"{name}: not fetched within media.fetch_seconds={limits.seconds:g}.")
    try:
        opener = build_opener(_SameRules(name, limits))
        with within(limits.seconds, late), opener.open(url, timeout=limits.seconds) as response:
            return _body(response, name, limits, late)
    except (OSError, HTTPException) as error:
        raise MediaError(f"{name}: cannot be fetched ({error}).") from None
    except MediaError:
        raise
    except ValueError as error:  # no address
        raise MediaError(f"{name}: cannot be fetched ({error}).") from None


def _body(response: Any, name: str, limits: Limits, late: MediaError) -> bytes:
    end, most = time.monotonic() + limits.seconds, int(limits.megabytes * 1e6)
    pieces, size = [], 0
    while piece := response.read1(PIECE):  # what has come, without waiting for more
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise MediaError(
                f"{name}: more than media.max_megabytes={limits.megabytes:g}. Raise that, or leave it out."
            )
        if time.monotonic() > end:
            raise late
    promised = response.headers.get("Content-Length")
    if promised is not None and promised.isdecimal() and size < int(promised):
        raise MediaError(f"{name}: cut off after {size} of {promised} bytes.")
    return b"".join(pieces)


def _check_host(url: str, name: str, limits: Limits) -> None:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError as error:
        raise MediaError(f"{name}: no address ({error}).") from None
    if ANY_HOST not in limits.hosts and host.lower() not in {listed.lower() for listed in limits.hosts}:
        allowed = f"media.urls lists {', '.join(limits.hosts)}" if limits.hosts else "media.urls lists none"
        raise MediaError(
            f"{name}: records may not fetch from {host!r} ({allowed}). Download the files, or add it: --media.urls {host}"
        )


class _SameRules(HTTPRedirectHandler):
    """Where a server sends us on, the rules are the same."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits = name, limits

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request. MediaError for a host that is not listed."""
        _check_host(newurl, self.name, self.limits)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
