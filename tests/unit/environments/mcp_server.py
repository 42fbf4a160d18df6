"""A server of tests that speaks MCP on its standard input and output: a till that remembers."""

import os
import signal
import time

from mcp import MCPError
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


@server.tool()
def refuse(coins: int) -> str:
    """Refuses what it is given, as the protocol says it, not the tool."""
    raise MCPError(code=coins, message="no such coins")


for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)


@server.tool()
def hang(file: str) -> str:
    """Never answers, and ends for nobody who asks politely."""
    with open(file, "w") as told:
        told.write(str(os.getpid()))
    while True:
        time.sleep(1)


server.run("stdio")
