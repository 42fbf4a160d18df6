"""A small hub of data sets on this machine: enough of its HTTP interface for huggingface_hub and datasets, which then read it as the real one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers for one data set, `server.name`, of `server.files`; counts what is asked for in `server.asked`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")  # type: ignore[attr-defined]
        name, files = self.server.name, self.server.files  # type: ignore[attr-defined]
        if re.fullmatch(rf"/api/datasets/{name}(/revision/[^/]+)?", path):
            siblings = [{"rfilename": file} for file in files]
            self._json({"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings, "lastModified": "2026-01-01T00:00:00.000Z"})  # fmt: skip
        elif found := re.fullmatch(rf"/api/datasets/{name}/tree/[^/]+(?:/(.*))?", path):
            self._json(_listed(files, found[1] or ""))
        elif (found := re.fullmatch(rf"/datasets/{name}/resolve/[^/]+/(.*)", path)) and found[1] in files:
            self._file(files[found[1]])
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        files = self.server.files  # type: ignore[attr-defined]
        self._json([one for path in body.get("paths", ()) for one in _info(files, path)])

    def log_message(self, *_: Any) -> None:
        pass

    def _json(self, found: Any) -> None:
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _file(self, content: bytes) -> None:
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hash(content) & 0xFFFFFFFF:x}"',
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        part = content[first : last + 1]
        self._send(206, part, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _info(files: Mapping[str, bytes], path: str) -> list[dict[str, Any]]:
    if path in files:
        return [{"type": "file", "path": path, "size": len(files[path]), "oid": COMMIT}]
    if any(file.startswith(f"{path}/") for file in files):
        return [{"type": "directory", "path": path, "oid": COMMIT}]
    return []


def _listed(files: Mapping[str, bytes], below: str) -> list[dict[str, Any]]:
    inside = {file for file in files if not below or file.startswith(f"{below}/")}
    folders = {file.rsplit("/", 1)[0] for file in inside if "/" in file.removeprefix(f"{below}/")}
    return [one for path in sorted(inside | folders) for one in _info(files, path)]


@contextmanager
def hub(name: str, files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub with one data set, and what it was asked so far."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.name, server.files, server.asked = name, dict(files), []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
