"""An agent program, as it is, for an environment: it asks the policy as it would ask any server that speaks OpenAI's protocol.

The program runs in a thread and is given the address of an endpoint of its own (door.py). Each of its requests is a turn of one
response, whose tokens are kept as they were sampled: of a request only the messages that are new are read.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightrft.environments.base import Observation, taken
from lightrft.environments.door import MODEL, Door
from lightrft.environments.tools import IN_JSON, parsed_call
from lightrft.utils.imports import resolve

Said = dict[str, Any]
"""A message in OpenAI's form."""


class Agent:
    """One conversation of a program: a function that is given what it takes of base_url, api_key, row and seed.

    What it returns, a number or nothing, is the reward; what it raises is a failure of the environment. How responses are sampled
    is the run's affair: a request's temperature and limits are not read.
    """

    def __init__(self, program: str) -> None:
        """`program`: import path of the function, plain or async. ValueError if there is none."""
        self._program: Callable[..., Any] = resolve({}, program, "agent program")
        self._name = program
        if not callable(self._program):
            raise ValueError(f"environment.options.program={program} is no function.")
        self._door: Door | None = None
        self._history: list[Said] = []
        self._tools: list[Said] = []
        self._told: int = 0

    def reset(self, *, seed: int, options: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Starts the program; its first request is the prompt, with the tools it names. RuntimeError if it ends without asking."""
        self._door, self._history, self._tools, self._told = Door(), [], [], 0
        given = {"base_url": self._door.url, "api_key": "none", "row": dict(options), "seed": seed}
        threading.Thread(target=self._run, args=(self._door, given), daemon=True).start()
        kind, found = self._next()
        if kind == "ended":
            raise RuntimeError(f"the program {self._name} ended before it had asked anything.")
        self._tools = found.get("tools") or []
        return self._new(found), {"whole_prompt": True, "tools": self._tools}

    def step(
        self, action: str, truncated: bool = False
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Answers the program, and waits until it asks again or ends."""
        said = assistant(action)
        self._history.append(said)
        self._opened.answers.put(_completion(said, truncated))
        kind, found = self._next()
        counts = {"counts": {"refused": self._refused()}}
        if kind == "ended":
            return "", 0.0 if found is None else found, True, False, counts
        return self._new(found), 0.0, False, False, counts

    def final_reward(self) -> float:
        """Tells a program whose conversation was cut that no turn is left; what it returns then, or 0 where it gives up for that. What it
        raises for another reason is raised."""
        self._opened.end()
        kind, found = self._opened.events.get()
        if kind == "raised" and not self._opened.tells_end(found):
            raise found
        return found if kind == "ended" and found is not None else 0.0

    def close(self) -> None:
        """Ends the endpoint; a program that waits for an answer is told so."""
        if self._door is not None:
            self._door.close()

    @property
    def _opened(self) -> Door:
        assert self._door is not None, "reset comes first"
        return self._door

    def _run(self, door: Door, given: Mapping[str, Any]) -> None:
        try:
            found = self._program(**taken(self._program, given))
            door.events.put(("ended", asyncio.run(found) if inspect.iscoroutine(found) else found))
        except BaseException as error:
            door.events.put(("raised", error))

    def _next(self) -> tuple[str, Any]:
        """The next request, or how the program ended; raises what it has raised."""
        kind, found = self._opened.events.get()
        if kind == "raised":
            raise found
        return kind, found

    def _refused(self) -> int:
        """Requests that were told of an error since the last turn."""
        before, self._told = self._told, self._opened.refused
        return self._told - before

    def _new(self, request: Mapping[str, Any]) -> list[Said]:
        """The messages behind those that were there. ValueError for a request that changes what was said before."""
        if request.get("tools") and request["tools"] != self._tools:
            raise ValueError(
                f"the program {self._name} asks with other tools than at first. The policy is told of them in its prompt: name all of them in "
                "the first request."
            )
        messages = [_plain(message) for message in request["messages"]]
        if len(messages) < len(self._history) or not all(map(_alike, self._history, messages)):
            raise ValueError(
                f"the program {self._name} asks with another past than its conversation has. A response is one conversation that only "
                "grows: let it ask with all that was said, as it was said, and new messages behind."
            )
        added = messages[len(self._history) :]
        if not added:
            raise ValueError(f"the program {self._name} asks without a new message.")
        self._history += added
        return [{"role": message["role"], "content": message["content"]} for message in added]


def assistant(action: str) -> Said:
    """What the policy said, as a client wants it: calls that are right apart from the text, everything else in it."""
    calls: list[Said] = []
    text, place = "", 0
    for match in IN_JSON.finditer(action):
        name, arguments = parsed_call(match[1])
        if name:
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
            text += action[place : match.start()]
            place = match.end()
    content = text + action[place:]
    if not calls:
        return {"role": "assistant", "content": content}
    return {"role": "assistant", "content": content.strip() or None, "tool_calls": calls}


def _completion(said: Said, truncated: bool) -> dict[str, Any]:
    reason = "length" if truncated else "tool_calls" if "tool_calls" in said else "stop"
    choice = {"index": 0, "message": said, "finish_reason": reason}
    made = {"id": "chatcmpl-policy", "object": "chat.completion", "created": int(time.time()), "model": MODEL}
    return made | {"choices": [choice]}


def _plain(message: Mapping[str, Any]) -> Said:
    """A message with its text as one. ValueError for one that holds anything but text."""
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise ValueError("a request of an agent program holds media, and replies are texts alone.")
        content = "".join(str(part["text"]) for part in content)
    return {**message, "role": str(message.get("role", "user")), "content": content or ""}


def _alike(old: Said, new: Said) -> bool:
    """Whether a client gives a message back as it was: its role, its text, and the calls in it."""
    return (old["role"], old["content"] or "", _calls(old)) == (
        new["role"],
        new["content"] or "",
        _calls(new),
    )


def _calls(message: Said) -> list[tuple[Any, Any]]:
    functions = [call.get("function", {}) for call in message.get("tool_calls") or []]
    return [(function.get("name"), function.get("arguments")) for function in functions]
