"""Plain functions as tools: their schemas for the prompt, and the policy's calls of them as replies.

Imports no torch: worker processes run this.
"""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_origin

from lightrft.config.sandbox import SandboxConfig
from lightrft.environments.base import Observation, ToolError
from lightrft.environments.calculator import calc
from lightrft.environments.python import Python
from lightrft.utils.imports import resolve
from lightrft.workers.boxes import USUAL

Calls = Literal["json", "tags"]
TOOLS: Mapping[str, Callable[..., Any]] = {"calc": calc}
"""The built-in tools by name, besides RUNS_PROGRAMS."""
RUNS_PROGRAMS: Mapping[str, Callable[[SandboxConfig], Callable[..., Any]]] = {"python": Python}
"""Built-in tools that run what the policy wrote, made with the settings of the sandbox."""
LATE = ("error: the calls before took all the time there is for one turn", False)
"""What is said to a call that comes too late."""
IN_JSON = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
MOST_CALLS = 16
"""Calls of one turn that are answered; the policy is told that more are not."""
TYPES = {int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
"""Python's types as a JSON schema names them, besides strings; the policy is told of others as strings, too."""


class Tools:
    """An environment of functions: answers the calls of a turn, and is over when a turn has none.

    calls: how the policy writes a call. json: <tool_call>{"name": ..., "arguments": {...}}</tool_call>, as Hermes and Qwen models
    do; tags: <NAME>argument</NAME>, for functions of one argument. What a tool is asked wrongly (JSON that is none, an unknown
    name, wrong arguments, ToolError) is a reply that says so, counted as environment/errors.
    """

    def __init__(self, tools: Sequence[str], calls: Calls = "json", sandbox: SandboxConfig = USUAL) -> None:
        """`tools`: built-in names and import paths; `sandbox`: where they run programs of the policy. ValueError for one that is no
        function with a docstring."""
        self._functions: dict[str, Callable[..., Any]] = {}
        self._calls, self._seconds = calls, sandbox.wall_seconds
        for name in tools:
            self.add(load_tool(name, sandbox))

    def add(self, function: Callable[..., Any]) -> None:
        """One tool more. ValueError if another one has its name, or if a call of it cannot be written."""
        if function.__name__ in self._functions:
            raise ValueError(f"environment.tools: two of them are called '{function.__name__}'. Rename one.")
        if self._calls == "tags" and len(inspect.signature(function).parameters) != 1:
            raise ValueError(
                f"tool '{function.__name__}' has not just one argument, so environment.calls=tags cannot write a call of it. Set "
                "environment.calls=json."
            )
        self._functions[function.__name__] = function

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """What the prompt says of each tool, in OpenAI's form, as chat templates take it."""
        return [schema(function) for function in self._functions.values()]

    def reset(self) -> tuple[str, dict[str, Any]]:
        """Nothing is said before the first turn."""
        return "", {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """A message of role tool for each call; none, and it is over."""
        calls = self._found(action)
        if not calls:
            return "", 0.0, True, False, {}
        latest = time.monotonic() + self._seconds
        answers = [
            self._answer(name, arguments) if time.monotonic() < latest else LATE
            for name, arguments in calls[:MOST_CALLS]
        ]
        if len(calls) > MOST_CALLS:
            answers.append((f"error: {len(calls)} calls in one turn; only {MOST_CALLS} are answered.", False))
        counts = {"calls": len(calls), "errors": sum(not good for _, good in answers)}
        messages = [{"role": "tool", "content": text} for text, _ in answers]
        return messages, 0.0, False, False, {"counts": counts}

    def _found(self, action: str) -> list[tuple[str, Any]]:
        """Name and arguments of each call: a dictionary, or a text that is an argument or, under no name, what is wrong."""
        if self._calls == "tags":
            return _tagged(action, list(self._functions)) if self._functions else []
        return [parsed_call(text) for text in IN_JSON.findall(action)]

    def _answer(self, name: str, arguments: Any) -> tuple[str, bool]:
        """What the policy is told, and whether its call was right."""
        if not name:
            return f"error: {arguments}", False
        function = self._functions.get(name)
        if function is None:
            return f"error: there is no tool {name!r}; there are: {', '.join(self._functions)}", False
        try:
            bound = inspect.signature(function).bind(
                *([_of_kind(function, arguments)] if isinstance(arguments, str) else []),
                **(arguments if isinstance(arguments, dict) else {}),
            )
        except TypeError as error:
            return f"error: {name}: {error}", False
        if wrong := _wrong_type(function, bound.arguments):
            return f"error: {name}: {wrong}", False
        try:
            found = function(*bound.args, **bound.kwargs)
        except ToolError as error:
            return f"error: {error}", False
        return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str), True


def load_tool(name: str, sandbox: SandboxConfig) -> Callable[..., Any]:
    """The tool called `name`, or what an import path names. ValueError for what the policy cannot be told of or call."""
    made = {name: make(sandbox) for name, make in RUNS_PROGRAMS.items()}
    found = resolve({**TOOLS, **made}, name, "tool")
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise ValueError(f"tool '{name}' is no plain function.")
    if not inspect.getdoc(found):
        raise ValueError(
            f"tool '{name}' has no docstring, and the policy is told that. Write one line that says what it does."
        )
    return found


def schema(function: Callable[..., Any]) -> dict[str, Any]:
    """A function as OpenAI's function schema: name, docstring, and the arguments with their annotated types."""
    parameters = inspect.signature(function).parameters
    kinds = _kinds(function)
    properties = {name: {"type": kinds.get(name, "string")} for name in parameters}
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    arguments = {"type": "object", "properties": properties, "required": required}
    about = {"name": function.__name__, "description": inspect.getdoc(function), "parameters": arguments}
    return {"type": "function", "function": about}


def _wrong_type(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """What is wrong with the types of arguments that JSON gave; empty if nothing is."""
    kinds, python = _kinds(function), dict[str, Any]({"string": str, "number": (int, float)})
    for name, value in arguments.items():
        kind = kinds.get(name, "")
        wanted = python.get(kind) or next((t for t, called in TYPES.items() if called == kind), object)
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind in ("integer", "number")):
            return f"argument {name!r} must be of type {kind}"
    return ""


def _of_kind(function: Callable[..., Any], text: str) -> Any:
    """The one argument of a call as tags, read as JSON where the function wants no text; the text itself where that is none."""
    (name,) = inspect.signature(function).parameters
    if _kinds(function).get(name, "string") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _kinds(function: Callable[..., Any]) -> dict[str, str]:
    """Argument -> its type as a JSON schema names it, for those whose annotation says one."""
    try:
        hints = inspect.get_annotations(function, eval_str=True)
    except NameError:  # annotated with what is imported for type checkers only
        return {}
    named: dict[Any, str] = {**TYPES, str: "string"}
    kinds = {name: get_origin(hint) or hint for name, hint in hints.items() if name != "return"}
    return {name: named[kind] for name, kind in kinds.items() if kind in named}


def _tagged(text: str, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Every <NAME>argument</NAME>, in time that grows with the text alone."""
    found: list[tuple[str, Any]] = []
    endless: set[str] = set()
    place, opening = 0, re.compile("<(" + "|".join(map(re.escape, names)) + ")>")
    while match := opening.search(text, place):
        name, place = match[1], match.end()
        end = -1 if name in endless else text.find(f"</{name}>", place)
        if end < 0:
            endless.add(name)  # nor does any later one end
            continue
        found.append((name, text[place:end]))
        place = end + len(name) + 3
    return found


def parsed_call(text: str) -> tuple[str, Any]:
    """Name and arguments of a call in JSON; no name, and what is wrong, for one that is none."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return "", "the call is not JSON"
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return "", 'a call is {"name": ..., "arguments": {...}}'
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return "", "arguments must be an object"
    return call["name"], arguments
