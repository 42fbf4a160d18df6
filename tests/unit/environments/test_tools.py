"""Functions as tools: what is called rightly is answered, what is called wrongly is told so, and nothing of it raises."""

import json
import time
from pathlib import Path

import pytest

from lightrft.config import EnvironmentConfig, SandboxConfig
from lightrft.environments.base import ToolError
from lightrft.environments.calculator import calc
from lightrft.environments.episodes import Episodes, calls_limit
from lightrft.environments.tools import MOST_CALLS, Tools, schema
from lightrft.sandbox.levels import levels
from lightrft.workers.boxes import check_box

TOOLS = Path(__file__).with_name("tools_of_tests.py")


def replies(environment, action):
    said, reward, terminated, truncated, info = environment.step(action)
    assert (reward, truncated) == (0.0, False)
    return [m["content"] for m in said] if said else [], terminated, info.get("counts", {})


def test_calls_in_json_are_answered_in_their_order():
    both = (
        'First <tool_call>\n{"name": "calc", "arguments": {"expression": "3 * 4"}}\n</tool_call> and '
        '<tool_call>{"name": "calc", "arguments": {"expression": "2 + 2"}}'
    )  # the last one is cut where the turn ended
    assert replies(Tools(["calc"]), both) == (["12", "4"], False, {"calls": 2, "errors": 0})


def test_calls_in_tags_give_the_text_between_them():
    environment = Tools(["calc"], calls="tags")
    assert replies(environment, "<calc>12 * 34</calc>") == (["408"], False, {"calls": 1, "errors": 0})
    assert replies(environment, "I know it: 408. <calc>12 *") == ([], True, {})


def test_an_argument_in_tags_is_read_as_its_annotation_says():
    environment = Tools([f"{TOOLS}:double"], calls="tags")
    assert replies(environment, "<double>21</double>")[0] == ["42"]
    (said,), _, counts = replies(environment, "<double>many</double>")
    assert said == "error: double: argument 'number' must be of type integer"
    assert counts == {"calls": 1, "errors": 1}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", 'a call is {"name"'),
        ('{"arguments": {}}', 'a call is {"name"'),
        ('{"name": "calc", "arguments": "3 * 4"}', "arguments must be an object"),
        ('{"name": "clac", "arguments": {}}', "there is no tool 'clac'; there are: calc"),
        ('{"name": "calc", "arguments": {"expression": "1", "x": "1"}}', "calc: got an unexpected keyword"),
        ('{"name": "calc", "arguments": {"expression": 5}}', "argument 'expression' must be of type string"),
        ('{"name": "calc", "arguments": {}}', "calc: missing a required argument"),
        ('{"name": "calc", "arguments": {"expression": "1 / 0"}}', "division by zero"),
        ('{"name": "calc", "arguments": {"expression": "__import__(\'os\')"}}', "not arithmetic"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_call_is_told_so_and_counted(call, told):
    (said,), terminated, counts = replies(Tools(["calc"]), f"<tool_call>{call}</tool_call>")
    assert said.startswith("error: ")
    assert told in said
    assert (terminated, counts) == (False, {"calls": 1, "errors": 1})


def test_no_number_or_length_of_calls_takes_long():
    many = '<tool_call>{"name": "calc", "arguments": {"expression": "1 + 1"}}</tool_call>' * 1000
    said, _, counts = replies(Tools(["calc"]), many)
    assert (len(said), counts["calls"]) == (MOST_CALLS + 1, 1000)
    start = time.perf_counter()
    for action in ("<calc>" * 30_000, "<calc></calc" * 20_000, "<tool_call>" * 20_000):
        for calls in ("tags", "json"):
            Tools(["calc"], calls=calls).step(action)
    assert time.perf_counter() - start < 5.0  # quadratic time would be minutes


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 * (3 + 4)", "84"), ("7 // 2", "3"), ("-3 - 4", "-7"), ("1,000 + 1", "1001"), ("1 / 4", "0.25")],
)
def test_the_calculator_works_out(expression, value):
    assert calc(expression) == value


@pytest.mark.parametrize(
    "expression", ["2 ** 9999999", "x", "True", "(" * 99, "1 +", "9" * 200, "f'{1}'", "1 if 1 else 2", ""]
)
def test_the_calculator_refuses_what_is_no_arithmetic(expression):
    with pytest.raises(ToolError):
        calc(expression)


def test_a_schema_comes_from_signature_and_docstring():
    found = Tools([f"{TOOLS}:weather"]).schemas
    assert found == [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "Tells the weather.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                    "required": ["city"],
                },
            },
        }
    ]
    assert schema(calc)["function"]["parameters"]["required"] == ["expression"]


@pytest.mark.parametrize(
    ("name", "calls", "told"),
    [
        (f"{TOOLS}:silent", "json", "no docstring"),
        (f"{TOOLS}:later", "json", "no plain function"),
        (f"{TOOLS}:weather", "tags", "not just one argument"),
        ("calk", "json", "no tool named 'calk'"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_by_name(name, calls, told):
    with pytest.raises(ValueError, match=told):
        Tools([name], calls=calls)


def test_a_tool_that_breaks_is_a_failure_and_no_reply():
    with pytest.raises(ZeroDivisionError):
        Tools([f"{TOOLS}:broken"]).step('<tool_call>{"name": "broken"}</tool_call>')


def test_programs_run_in_the_sandbox_and_their_failures_are_told():
    """Each call is a program of its own; skips where this machine has no sandbox."""
    if not any(why == "" for why in levels().values()):
        pytest.skip(f"no sandbox here: {levels()}")
    environment = Tools(["python"])

    def told(code):
        call = json.dumps({"name": "python", "arguments": {"code": code}})
        (said,), _, counts = replies(environment, f"<tool_call>{call}</tool_call>")
        return said, counts["errors"]

    assert told("print(6 * 7)") == ("42\n", 0)
    assert told("x = 1") == ("(nothing was printed)", 0)
    assert told("print(1)\n1 / 0") == ("error: 1\n\nZeroDivisionError: division by zero", 1)
    said, errors = told("import socket; socket.socket()")
    assert (errors, "PermissionError" in said) == (1, True)
    quick = Tools(["python"], sandbox=SandboxConfig(cpu_seconds=1, wall_seconds=1.0), seconds=1.5)
    call = '<tool_call>{"name": "python", "arguments": {"code": "while True: pass"}}</tool_call>'
    start = time.perf_counter()
    said, _, counts = replies(quick, call * MOST_CALLS)
    assert counts["errors"] == MOST_CALLS
    assert said[-1].startswith("error: the calls before took all the time")
    assert time.perf_counter() - start < 15


def test_calls_that_come_too_late_are_told_so_by_a_limit_of_their_own():
    """The sandbox's has nothing to do with a function that runs no program."""
    config = EnvironmentConfig(tools=[f"{TOOLS}:slow"], calls_seconds=0.15, workers=0)
    with Episodes(config, SandboxConfig(wall_seconds=0.01)) as episodes:
        ((number, _),) = episodes.begin([(0, {})])
        (reply,) = episodes.step([(number, '<tool_call>{"name": "slow"}</tool_call>' * 4, False)])
    said = [message["content"] for message in reply.messages]
    assert said == ["done", "done", *["error: the calls before took all the time there is for one turn"] * 2]
    assert reply.counts == {"calls": 4, "errors": 2}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"tools": ["calc"], "calls_seconds": 30.0},
            r"calls_seconds=30 is no shorter than environment.timeout_seconds=30",
        ),
        ({"name": "a:B", "calls_seconds": 3.0}, r"calls_seconds=3 has no effect with environment.name=a:B"),
    ],
)
def test_a_limit_of_calls_that_cannot_hold_is_refused(given, told):
    with pytest.raises(ValueError, match=told):
        EnvironmentConfig(**given)


def test_a_short_time_for_replies_leaves_half_of_it_for_calls():
    """A setting on its own is right: timeout_seconds alone asks for no second option."""
    for timeout, limit in ((30.0, 10.0), (10.0, 5.0), (0.5, 0.25)):
        assert calls_limit(EnvironmentConfig(tools=["calc"], timeout_seconds=timeout)) == limit
    assert calls_limit(EnvironmentConfig(tools=["calc"], timeout_seconds=5.0, workers=0)) == 10.0
    assert calls_limit(EnvironmentConfig(tools=["calc"], timeout_seconds=5.0, calls_seconds=3.0)) == 3.0


def test_programs_need_room_behind_the_limit_of_calls():
    with pytest.raises(
        ValueError, match=r"timeout_seconds=20 .*wall_seconds=10, and may begin after 10 seconds.*at least 22"
    ):
        check_box(SandboxConfig(), "environment.timeout_seconds", 20.0, before=10.0)
