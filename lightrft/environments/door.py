"""An endpoint in OpenAI's form whose answers come from elsewhere: what an agent program asks, as a queue of requests."""

from __future__ import annotations

import json
import queue
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

MODEL = "policy"
"""Name of the model as the endpoint tells it; requests may name any."""
MOST_BYTES = 64 * 2**20
"""Longest request that is read."""
OVER = {"message": "the conversation has no room for another turn", "code": "context_length_exceeded"}
"""What a program is told that asks after its conversation was cut."""


class Door:
    """Chat completions on the loopback interface, for one program that asks for one thing at a time."""

    def __init__(self) -> None:
        self.events: queue.Queue[tuple[Literal["asked", "ended", "raised"], Any]] = queue.Queue()
        """Requests; and how the program ended, which whoever runs it puts there."""
        self.answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        """The answer to the request that waits; None: there will be none."""
        self.refused = 0
        """Requests that were told of an error so far."""
        self._is_over, self._one = False, threading.Lock()
        self._key = secrets.token_urlsafe(
            16
        )  # in the address, so that no other user of this machine finds it
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"door": self}))
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    @property
    def path(self) -> str:
        """What paths of the endpoint begin with."""
        return f"/{self._key}/v1"

    @property
    def url(self) -> str:
        """Address for a client's `base_url`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{self.path}"

    def ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request, once there is one. BlockingIOError if another one waits."""
        if not self._one.acquire(blocking=False):
            raise BlockingIOError
        try:
            if self._is_over:
                return None
            self.events.put(("asked", request))
            return self.answers.get()
        finally:
            self._one.release()

    def tells_end(self, error: BaseException) -> bool:
        """Whether an error of the program is, or was raised from, being told that its conversation is over, in whatever words its client has
        for that. What merely happened while it dealt with that is a fault of its own."""
        if isinstance(error, BaseExceptionGroup):
            return all(map(self.tells_end, error.exceptions))
        if self._is_refusal(error):
            return True
        return error.__cause__ is not None and self.tells_end(error.__cause__)

    def _is_refusal(self, error: BaseException) -> bool:
        told = f"{error} {getattr(error, 'url', '')}"
        if OVER["code"] in told or OVER["message"] in told:
            return True
        response = getattr(error, "response", None)
        status = [getattr(error, name, None) for name in ("code", "status", "status_code")]
        return self._key in told and 400 in [*status, getattr(response, "status_code", None)]

    def end(self) -> None:
        """Answers no further request."""
        self._is_over = True
        self.answers.put(None)

    def close(self) -> None:
        """Ends, and frees the port."""
        self.end()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    door: Door

    def do_GET(self) -> None:
        if self.path == f"{self.door.path}/models":
            self._send({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._refuse(404, {"message": f"no {self.path}"})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        text = self.rfile.read(min(length, MOST_BYTES + 1))
        if self.path != f"{self.door.path}/chat/completions":
            self._refuse(404, {"message": f"no {self.path}; there is chat/completions"})
            return
        try:
            request = parsed(text)
            answer = self.door.ask(request)
        except ValueError as error:
            self._refuse(400, {"message": str(error)})
        except BlockingIOError:
            self._refuse(409, {"message": "one request at a time: a response is one conversation"})
        else:
            if answer is None:
                self._refuse(400, OVER)
            elif request.get("stream"):
                self._stream(answer)
            else:
                self._send(answer)

    def log_message(self, *_: Any) -> None:
        pass

    def _refuse(self, status: int, error: dict[str, str]) -> None:
        self.door.refused += 1
        self._send({"error": {"type": "invalid_request_error", **error}}, status)

    def _send(self, found: dict[str, Any], status: int = 200) -> None:
        self._write(json.dumps(found).encode(), "application/json", status)

    def _stream(self, answer: dict[str, Any]) -> None:
        """The whole answer as one piece, for clients that read streams alone."""
        (choice,) = answer["choices"]
        calls = choice["message"].get("tool_calls", [])
        delta = choice["message"] | (
            {"tool_calls": [{"index": n, **c} for n, c in enumerate(calls)]} if calls else {}
        )
        piece = {"index": 0, "delta": delta, "finish_reason": choice["finish_reason"]}
        chunk = answer | {"object": "chat.completion.chunk", "choices": [piece]}
        self._write(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream", 200)

    def _write(self, body: bytes, kind: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status != 200:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def parsed(text: bytes) -> dict[str, Any]:
    """A request for a chat completion. ValueError, saying what is wrong, for another thing."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"a request has at most {MOST_BYTES} bytes")
    try:
        request: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("messages: expected a list of messages")
    if request.get("n", 1) != 1:
        raise ValueError("n: one choice is all there is; siblings are conversations of their own")
    tools = request.get("tools") or []
    if not isinstance(tools, list) or not all(map(_is_function, tools)):
        raise ValueError("tools: expected a list of functions, each with a name")
    return request


def _is_function(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"] != ""
