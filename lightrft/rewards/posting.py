"""One HTTP request with a time limit of its own: over when the time is over, however slowly the other side sends."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection, IncompleteRead
from threading import Event, Timer
from typing import Any
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
    seconds, in which the time to look the host up does not count) or HTTPException where there is no reply, or not all of it; UnicodeError for
    what HTTP cannot say; TooLongError for a longer reply.
    """
    parts = urlsplit(url)
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    host, tls = str(parts.hostname), parts.scheme == "https"
    port = parts.port or (443 if tls else 80)
    places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    end = time.monotonic() + seconds
    with closing((HTTPSConnection if tls else HTTPConnection)(host, port)) as connection:
        connection.sock = line = _line(places, end)
        if tls:
            connection.sock = line = _encrypted(line, host)
        with _cut_at(end, line):
            if isinstance(line, ssl.SSLSocket):
                line.do_handshake()
            connection.request("POST", path, body, dict(headers))
            reply = connection.getresponse()
            if not 200 <= reply.status < 300:
                return reply.status, reply.read(MOST_TOLD)
            return reply.status, _whole(reply, most)


def _line(places: Sequence[tuple[int, int, int, str, Any]], end: float) -> socket.socket:
    """A connection to the first of the addresses of a host that takes one. Each has its share of the time until `end`, so that one that
    swallows what is sent leaves some to the others; OSError, the last one's, if none does."""
    failed: OSError = TimeoutError("timed out")
    for number, (family, kind, protocol, _, address) in enumerate(places):
        left = end - time.monotonic()
        if left <= 0:
            break
        line = socket.socket(family, kind, protocol)
        try:
            line.settimeout(left / (len(places) - number))
            line.connect(address)
        except OSError as error:
            line.close()
            failed = error
            continue
        line.settimeout(max(1e-3, end - time.monotonic()))
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return line
    raise failed


def _encrypted(line: socket.socket, host: str) -> ssl.SSLSocket:
    """A connection to a host that must have a certificate, before any of the handshake: that is to be cut off, too."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context.wrap_socket(line, server_hostname=host, do_handshake_on_connect=False)


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
