"""A server of tests that speaks MCP on its standard input and output: a till that remembers."""

import os

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("till")
paid = []


@server.tool()
def pay(coins: int, to: str = "you") -> str:
    """Pays so many coins."""
    if coins < 0:
        raise ToolError("nobody pays less than nothing")
    paid.append(coins)
    return f"{sum(paid)} for {to}"


@server.tool()
def leave() -> str:
    """Ends the server."""
    os._exit(3)


server.run("stdio")
