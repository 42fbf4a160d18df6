"""`lightrft view RUN --web`: a server for this machine alone, that only reads, and only what the runs it was given hold."""

from __future__ import annotations

import gzip
import json
import secrets
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from lightrft.console.web import answers, page
from lightrft.runs.reader import Run
from lightrft.utils.shown import shown

LOOPBACK = "127.0.0.1"
NAMES = ("127.0.0.1", "localhost", "::1")
"""Names under which a browser on this machine, or at the other end of a tunnel, may ask for the server. Any other is that of a
page elsewhere whose name was made to point here (DNS rebinding)."""
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SMALLEST_PACKED = 1024


def make_server(runs: Sequence[Run], port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """A server that is not running yet, and its address; with port 0 one that is free.

    The address has a secret word: others on this machine reach the port, and must not read the runs. ValueError if the port is taken.
    """
    secret = secrets.token_urlsafe(12)
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), partial(Viewer, runs, secret))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--port {port}: {getattr(error, 'strerror', None) or error}. Set another port, or 0 for a free one."
        ) from None
    server.daemon_threads = True
    return server, f"http://{LOOPBACK}:{server.server_address[1]}/{secret}/"


def serve(runs: Sequence[Run], port: int = 0) -> None:
    """Serves the viewer until it is interrupted, and says where."""
    server, address = make_server(runs, port)
    number = server.server_address[1]
    print(f"{address}   (Ctrl-C ends it)", flush=True)
    print(f"from another machine, first: ssh -L {number}:{LOOPBACK}:{number} THIS_MACHINE", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


class Viewer(BaseHTTPRequestHandler):
    """Answers one request."""

    server_version, sys_version = "lightrft", ""
    protocol_version = "HTTP/1.1"
    timeout = 30

    def __init__(self, runs: Sequence[Run], secret: str, *args: Any) -> None:
        self.runs, self.secret = runs, secret
        super().__init__(*args)

    def do_GET(self) -> None:  # named by http.server
        """A page, a part of it, or an answer."""
        if not self._is_from_here():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"Ask for 127.0.0.1 or localhost.\n")
            return
        _, word, *rest = unquote(urlsplit(self.path).path).split("/")
        if not secrets.compare_digest(word.encode(), self.secret.encode()) or not rest:
            self._send(
                HTTPStatus.NOT_FOUND,
                "text/plain",
                b"Open the whole address that lightrft view has printed.\n",
            )
        elif rest == [""]:
            title = " and ".join(run.folder.name for run in self.runs)
            text, policy = page.served(shown(title, lines=False))
            self._send(
                HTTPStatus.OK, "text/html; charset=utf-8", text.encode(), {"Content-Security-Policy": policy}
            )
        elif rest[0] == "static":
            self._part("/".join(rest[1:]))
        elif rest[0] == "api":
            self._answer("/".join(rest[1:]))
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        """For what would change something: nothing here does."""
        self.close_connection = True
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"read only\n", {"Allow": "GET, HEAD"})

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is for the address."""

    def _is_from_here(self) -> bool:
        try:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        except ValueError:
            return False
        crosses = self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        is_page = self.headers.get("Sec-Fetch-Mode") == "navigate"
        return host in NAMES and (is_page or not crosses)

    def _part(self, name: str) -> None:
        try:
            text = page.part(name)
        except KeyError:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")
            return
        self._send(HTTPStatus.OK, page.KINDS[name[name.rindex(".") :]], text.encode())

    def _answer(self, path: str) -> None:
        kind = "application/json"
        try:
            found = answers.encoded(answers.answer(self.runs, path))
        except (ValueError, OSError) as error:
            told = json.dumps({"error": shown(error)}).encode()
            self._send(HTTPStatus.NOT_FOUND, kind, told)
            return
        self._send(HTTPStatus.OK, kind, found)

    def _send(
        self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        packed = len(body) >= SMALLEST_PACKED and "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, 3) if packed else body
        more = SAFE | (headers or {}) | ({"Content-Encoding": "gzip"} if packed else {})
        try:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
