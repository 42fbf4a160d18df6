"""One HTTP request with a time limit of its own: over when the time is over, however slowly the other side sends."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from threading import Event, Timer
from urllib.parse import urlsplit

MOST_TOLD = 500
"""Bytes of the reply to a request that failed, to be told to people."""


class TooLongError(Exception):
    """A reply has more bytes than were asked for."""


def post(
    url: str, body: bytes, headers: Mapping[str, str], *, seconds: float, most: int
) -> tuple[int, bytes]:
    """Status and reply of a POST, at most `most` bytes; of a status other than 2xx the beginning of what is said.

    No redirect is followed, which would carry the body and a key to another host, and no proxy is asked. OSError (TimeoutError after so many
    seconds) or HTTPException where there is no reply, or not all of it; TooLongError for a longer one.
    """
    parts = urlsplit(url)
    make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    end = time.monotonic() + seconds
    with closing(make(str(parts.hostname), parts.port, timeout=seconds)) as connection:
        connection.connect()
        with _cut_at(end, connection.sock):
            connection.request("POST", path, body, dict(headers))
            reply = connection.getresponse()
            if not 200 <= reply.status < 300:
                return reply.status, reply.read(MOST_TOLD)
            return reply.status, _whole(reply, most)


@contextmanager
def _cut_at(end: float, line: socket.socket) -> Iterator[None]:
    """Ends the connection at this time of `time.monotonic`, whatever is waited for then, with a TimeoutError: the time limit of a socket is
    one of each piece that it reads, and a reply may come in many."""
    late = Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    clock = Timer(max(0.0, end - time.monotonic()), cut)
    clock.daemon = True
    clock.start()
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        if not late.is_set():
            raise
        failed = error
    finally:
        clock.cancel()
    if late.is_set():
        raise TimeoutError("timed out: the whole reply did not come in time") from failed


def _whole(reply: HTTPResponse, most: int) -> bytes:
    """All of a reply. IncompleteRead where the other side ends before it has sent what it announced."""
    found = bytearray()
    while piece := reply.read1(2**16):
        found += piece
        if len(found) > most:
            raise TooLongError(f"its reply has more than {most} bytes.")
    if reply.length:
        raise IncompleteRead(bytes(found), reply.length)
    return bytes(found)
