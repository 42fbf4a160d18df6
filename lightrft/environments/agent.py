"""An agent program, as it is, for an environment: it asks the policy as it would ask any server that speaks OpenAI's protocol.

The program runs in a thread and is given the address of an endpoint of its own (door.py). Each of its requests is a turn of one
response, whose tokens are kept as they were sampled: of a request only the messages that are new are read. One that asks with another past
begins a new row of the response, behind the last turn that it shares with a row there is.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightrft.environments.base import Observation, taken
from lightrft.environments.door import MODEL, Door
from lightrft.environments.tools import IN_JSON, parsed_call
from lightrft.utils.imports import resolve

Said = dict[str, Any]
"""A message in OpenAI's form."""


@dataclass
class _Row:
    """What was said in one row of the response."""

    history: list[Said] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """How many of these messages there were at the end of each turn of the policy."""

    def shared(self, messages: list[Said]) -> int:
        """How many messages a request has in common with it."""
        pairs = zip(self.history, messages, strict=False)
        return next(
            (n for n, (old, new) in enumerate(pairs) if not _alike(old, new)),
            min(len(self.history), len(messages)),
        )

    def turns(self, messages: int) -> int:
        """How many turns of the policy end within its first messages."""
        return bisect_right(self.ends, messages)

    def cut(self, turns: int, first: int) -> _Row:
        """The beginning of the row up to the end of so many turns; of none, the `first` messages, which are the prompt."""
        return _Row(self.history[: self.ends[turns - 1] if turns else first], self.ends[:turns])


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
        self._tools: list[Said] = []
        self._told: int = 0
        self._rows: list[_Row] = []
        self._row: int = 0
        """The row that the program has asked for."""
        self._first: int = 0
        """Messages of the prompt."""

    def reset(self, *, seed: int, options: Mapping[str, Any]) -> tuple[Observation, dict[str, Any]]:
        """Starts the program; its first request is the prompt, with the tools it names. RuntimeError if it ends without asking."""
        self._door, self._tools, self._told = Door(), [], 0
        self._rows, self._row = [_Row()], 0
        given = {"base_url": self._door.url, "api_key": "none", "row": dict(options), "seed": seed}
        threading.Thread(target=self._run, args=(self._door, given), daemon=True).start()
        kind, found = self._next()
        if kind == "ended":
            raise RuntimeError(f"the program {self._name} ended before it had asked anything.")
        self._tools = found.get("tools") or []
        messages = self._messages(found)
        self._first = len(messages)
        return self._added(messages, 0), {"whole_prompt": True, "tools": self._tools}

    def step(
        self, action: str, truncated: bool = False
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Answers the program, and waits until it asks again or ends."""
        said, row = assistant(action), self._rows[self._row]
        row.history.append(said)
        row.ends.append(len(row.history))
        self._opened.answers.put(_completion(said, truncated))
        kind, found = self._next()
        info: dict[str, Any] = {"counts": {"refused": self._refused()}}
        if kind == "ended":
            return "", 0.0 if found is None else found, True, False, info
        new, past = self._placed(self._messages(found))
        return new, 0.0, False, False, info | ({} if past is None else {"past": past})

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

    def _messages(self, request: Mapping[str, Any]) -> list[Said]:
        """The messages of a request. ValueError for media, and for tools that its first one did not name."""
        if request.get("tools") and request["tools"] != self._tools:
            raise ValueError(
                f"the program {self._name} asks with other tools than at first. The policy is told of them in its prompt: name all of them in "
                "the first request."
            )
        return [_plain(message) for message in request["messages"]]

    def _placed(self, messages: list[Said]) -> tuple[list[Said], tuple[int, int] | None]:
        """The messages of a request that are new, and the (row, turns) they stand behind, None where that is the turn before."""
        shared = [row.shared(messages) for row in self._rows]
        going_on = [n for n, row in enumerate(self._rows) if shared[n] == len(row.history) < len(messages)]
        if self._row in going_on:
            return self._added(messages, self._row), None
        if going_on:
            self._row = going_on[-1]
            return self._added(messages, self._row), (self._row, len(self._rows[self._row].ends))
        turns = [row.turns(n) for row, n in zip(self._rows, shared, strict=True)]
        row = max(range(len(turns)), key=lambda n: (turns[n], shared[n]))
        self._check_past(messages, shared[row])
        self._row = len(self._rows)
        self._rows.append(self._rows[row].cut(turns[row], self._first))
        return self._added(messages, self._row), (row, turns[row])

    def _check_past(self, messages: list[Said], shared: int) -> None:
        """ValueError for a request with another prompt, or without anything new."""
        if shared < self._first:
            raise ValueError(
                f"the program {self._name} asks with another beginning than its first request had, whose messages are the prompt of all its "
                "responses. Let it ask with those first, as they were, or leave such requests to a server of their own."
            )
        if messages[-1]["role"] == "assistant":
            raise ValueError(f"the program {self._name} asks without a new message.")

    def _added(self, messages: list[Said], row: int) -> list[Said]:
        """The messages behind those of a row, which has them from now on. ValueError for words of the policy that it never said."""
        history = self._rows[row].history
        added = messages[len(history) :]
        if (row or self._rows[row].ends) and any(message["role"] == "assistant" for message in added):
            raise ValueError(
                f"the program {self._name} asks with words of the assistant that the policy never said. Let it give them back as they were, or "
                "write what it keeps of them as a user's message."
            )
        history += added
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
