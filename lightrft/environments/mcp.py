"""Tools of a server that speaks the Model Context Protocol (https://modelcontextprotocol.io), through the protocol's own client."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from lightrft.config.environment import USUAL_SECONDS
from lightrft.environments.tools import Calls, Tools
from lightrft.utils.imports import require

INVALID_PARAMS = -32602
"""JSON-RPC's code for arguments that a server does not take."""


class MCP(Tools):
    """An environment of a server's tools; each conversation has a server of its own, or a connection to a common one.

    A tool that says its call was wrong (`isError`), as one does that raises there, is a reply that says so, and so is a server that
    refuses the arguments; one that dies or breaks the protocol is a failure of the environment.
    """

    def __init__(
        self, command: str = "", url: str = "", calls: Calls = "json", seconds: float = USUAL_SECONDS
    ) -> None:
        """`command` starts a server that speaks on its standard input and output; `url` is that of one that runs already. ValueError
        unless one of them is given, and for other calls than json; RuntimeError without the package mcp."""
        super().__init__([], calls, seconds=seconds)
        if calls != "json":
            raise ValueError(
                f"environment.calls={calls}: the tools of an MCP server have several arguments. Set json."
            )
        if bool(command) == bool(url):
            raise ValueError("environment.name=mcp needs environment.options command COMMAND, or url URL.")
        self._stack = ExitStack()
        try:
            self._client, self._portal = self._connected(command, url)
            self._listed = self._all_tools()
        except BaseException:
            self._stack.close()
            raise

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """What the prompt says of each tool, in OpenAI's form."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": tool.input_schema,
                },
            }
            for tool in self._listed
        ]

    def close(self) -> None:
        """Ends the server, or the connection."""
        self._stack.close()

    def _connected(self, command: str, url: str) -> tuple[Any, Any]:
        """The client, and what runs its coroutines in a thread."""
        mcp, anyio = require("mcp", "mcp"), require("anyio.from_thread", "mcp")
        self._refused: Any = mcp.MCPError
        server: Any = url
        if command:
            # The environment's process has only the variables that it may have: the server gets those.
            program, *arguments = shlex.split(command)
            server = mcp.StdioServerParameters(command=program, args=arguments, env=dict(os.environ))
        portal = self._stack.enter_context(anyio.start_blocking_portal())
        client = self._stack.enter_context(portal.wrap_async_context_manager(mcp.Client(server)))
        return client, portal

    def _all_tools(self) -> list[Any]:
        found: list[Any] = []
        page = self._portal.call(self._client.list_tools)
        while True:
            found += page.tools
            if not page.next_cursor:
                return found
            page = self._portal.call(partial(self._client.list_tools, cursor=page.next_cursor))

    def _answer(self, name: str, arguments: Any) -> tuple[str, bool]:
        if not name:
            return f"error: {arguments}", False
        known = [tool.name for tool in self._listed]
        if name not in known:
            return f"error: there is no tool {name!r}; there are: {', '.join(known)}", False
        try:
            result = self._portal.call(self._client.call_tool, name, arguments)
        except self._refused as error:
            if error.code != INVALID_PARAMS:
                raise
            return f"error: {error}", False
        text = _texts(result.content)
        return (f"error: {text}", False) if result.is_error else (text, True)


def _texts(content: Sequence[Any]) -> str:
    """The text of a result; what is no text is named."""
    return "\n".join(part.text if part.type == "text" else f"[{part.type}]" for part in content)
