"""Tools of an MCP server: a real one, in a process of its own."""

import sys
import time
from pathlib import Path

import pytest

from lightrft.config import EnvironmentConfig
from lightrft.environments.episodes import Episodes, Failed

pytest.importorskip("mcp", reason="the package mcp is not installed")
SERVER = f"{sys.executable} {Path(__file__).with_name('mcp_server.py')}"


def call(name, **arguments):
    inside = ", ".join(f'"{key}": {value}' for key, value in arguments.items())
    return f'<tool_call>{{"name": "{name}", "arguments": {{{inside}}}}}</tool_call>'


@pytest.fixture
def episodes():
    with Episodes(EnvironmentConfig(name="mcp", options={"command": SERVER}, workers=0)) as found:
        yield found


def test_its_tools_are_told_and_called_and_every_conversation_has_a_server(episodes):
    pay, leave, *_ = episodes.schemas()
    assert pay["function"]["description"] == "Pays so many coins."
    assert pay["function"]["parameters"]["properties"]["coins"]["type"] == "integer"
    assert leave["function"]["name"] == "leave"
    (one, first), (two, _) = episodes.begin([(5, {}), (5, {})])
    assert first.messages == ()
    episodes.step([(one, call("pay", coins=3), False)])
    found = episodes.step([(one, call("pay", coins=4), False), (two, call("pay", coins=4), False)])
    assert [reply.messages[0]["content"] for reply in found] == ["7 for you", "4 for you"]
    assert episodes.step([(one, "Done.", False)])[0].done


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (call("pay", coins=-1), "nobody pays less than nothing"),
        (call("pay", coins='"many"'), "coins"),
        (call("pay"), "coins"),
        (call("refuse", coins=-32602), "no such coins"),
        (call("owe", coins=1), "there is no tool 'owe'; there are: pay, leave, refuse, hang"),
        ("<tool_call>pay!</tool_call>", "the call is not JSON"),
    ],
)
def test_a_wrong_call_is_told_so_and_counted(said, told, episodes):
    ((one, _),) = episodes.begin([(5, {})])
    (reply,) = episodes.step([(one, said, False)])
    assert reply.messages[0]["content"].startswith("error: ")
    assert told in reply.messages[0]["content"]
    assert reply.counts == {"calls": 1.0, "errors": 1.0}


@pytest.mark.parametrize("said", [call("leave"), call("refuse", coins=-32603)])
def test_a_server_that_dies_or_fails_is_a_failure_and_never_a_reply(said, episodes):
    ((one, _),) = episodes.begin([(5, {})])
    assert isinstance(episodes.step([(one, said, False)])[0], Failed)


def test_a_server_that_hangs_is_ended_with_the_process_that_asked_it(tmp_path):
    """Though it leads a session of its own, and was asked politely in vain."""
    file = tmp_path / "pid"
    config = EnvironmentConfig(name="mcp", options={"command": SERVER}, workers=1, timeout_seconds=10)
    with Episodes(config) as episodes:
        ((one, _),) = episodes.begin([(5, {})])
        (found,) = episodes.step([(one, call("hang", file=f'"{file}"'), False)])
        assert "timeout_seconds=10" in found.reason
        pid = int(file.read_text())
        for _ in range(100):  # until whoever it is left to has taken note
            if not Path(f"/proc/{pid}").exists() or "(zombie)" in Path(f"/proc/{pid}/status").read_text():
                return
            time.sleep(0.05)
    pytest.fail("the server lives on")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "command COMMAND"),
        ({"command": "no-such-program-anywhere"}, "no-such-program-anywhere"),
    ],
)
def test_a_server_that_is_not_there_is_named_before_anything(options, told):
    settings = EnvironmentConfig(name="mcp", options=options, workers=0)
    with Episodes(settings) as episodes, pytest.raises(ValueError, match=told):
        episodes.schemas()
