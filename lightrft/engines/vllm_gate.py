"""What asks for the key before anything of a vLLM server: vLLM's own check leaves out weights, workers and caches."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY = "VLLM_API_KEY"
"""Environment variable with the key, also vLLM's own."""
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Any, Send], Awaitable[None]]


class Gate:
    """ASGI middleware: every request of every route needs `Authorization: Bearer KEY`; without it 401."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.expected = f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Passes on what has the key, and what is no request (the start and the end of the server)."""
        if scope["type"] == "lifespan" or self._has_key(scope):
            await self.application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "the key is missing or wrong"}'})

    def _has_key(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.expected)
