"""What replies to the policy between its turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from lightrft.config.further import read_further
from lightrft.config.ranges import check_ranges

USUAL_SECONDS = 10.0
READ_CALLS = ("", "mcp", "repair", "search")
"""Environments that read the calls in a turn as environment.calls says; the others read turns by themselves."""
RUN_PROGRAMS = ("repair",)
"""Environments that run programs of the policy in the sandbox."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentConfig:
    """An environment or tools that the policy speaks with, turn by turn. Off without name and tools: a response is one turn."""

    name: str = ""
    """search (options corpus, top, index), agent (option program), mcp (option command or url), openenv (option url), repair (options
    repositories, packages), or the import path of an environment: a class, or a function that makes one. Empty: the tools, if there
    are any."""
    options: dict[str, str] = field(default_factory=dict)
    """Keyword arguments of the environment by name, each read as YAML, e.g. {env_id: "game:GuessTheNumber-v0"}."""
    tools: list[str] = field(default_factory=list)
    """Functions that the policy may call: built-in names (calc; python, in the sandbox) or import paths, e.g. [tools.py:search]."""
    calls: Literal["json", "tags"] = "json"
    """How the policy writes a call. json: <tool_call>{"name": ..., "arguments": {...}}</tool_call>; tags: <NAME>argument</NAME>."""
    announce: bool = True
    """Tell the policy of its tools in every prompt, through the chat template or in the system message; false where the rows do."""
    max_turns: int = 8
    """Most turns of the policy in one response."""
    forks: bool = False
    """Whether the program of environment.name=agent may ask with another past than its conversation has, as one does that tries again, or asks
    for parts apart from each other: what follows is a further row of the same response, which has its reward and is learned from as well. Without
    it such a program is a failure."""
    turn_tokens: int = 0
    """Most tokens of one turn; 0: as many as rollout.max_tokens leaves. That limits all turns with all replies."""
    reply_tokens: int = 1024
    """Most tokens of one reply; a longer one is cut in its middle."""
    timeout_seconds: float = 30.0
    """Longest time one reply may take; the process is then killed."""
    calls_seconds: float = 0.0
    """Longest time for the calls of one turn, all together: a later one is answered with an error. 0: 10, or half of timeout_seconds where
    that is less."""
    retries: int = 1
    """How often a conversation is begun again whose environment raised, hung or died."""
    on_failure: Literal["raise", "drop"] = "raise"
    """One that fails still: stop the run, or drop the response, counted and logged. An evaluation always drops it."""
    workers: int = 2
    """Child processes that hold environments; 0 holds them in the main process, without time limit."""
    memory_gb: float = 8.0
    """Most memory of one of these processes, 10^9 bytes (Linux); 0: any."""
    variables: list[str] = field(default_factory=list)
    """Environment variables that these processes get besides those that programs need to run, e.g. [MY_API_KEY]."""

    def further(self, prepare: Callable[[str], str] = str) -> dict[str, Any]:
        """`options` as the environment is given them, their texts prepared. ValueError for one that is not YAML."""
        return read_further("environment.options", self.options, prepare=prepare)

    def __post_init__(self) -> None:
        check_ranges("environment", self)
        self.further()
        # --environment.tools "" is none.
        object.__setattr__(self, "tools", [name for name in self.tools if name])
        if self.name and self.tools:
            raise ValueError(
                f"environment.name={self.name} with environment.tools={self.tools}: the tools would be ignored. Leave one of them out."
            )
        if self.name not in READ_CALLS and self.calls != "json":
            raise ValueError(
                f"environment.calls={self.calls} has no effect with environment.name={self.name}, which reads turns by itself. Leave it out."
            )
        if self.name not in READ_CALLS and self.calls_seconds:
            raise ValueError(
                f"environment.calls_seconds={self.calls_seconds:g} has no effect with environment.name={self.name}, which reads turns by "
                "itself. Leave it out."
            )
        if self.forks and self.name in READ_CALLS:
            raise ValueError(
                f"environment.forks=true has no effect with environment.name={self.name}, whose conversations have one past. Leave it out."
            )
        is_bounded = self.on and self.name in READ_CALLS and self.workers > 0
        if is_bounded and self.calls_seconds >= self.timeout_seconds:
            raise ValueError(
                f"environment.calls_seconds={self.calls_seconds:g} is no shorter than environment.timeout_seconds={self.timeout_seconds:g}, "
                "after which the whole process is ended. Set it to less."
            )
        if self.options and not self.name:
            raise ValueError(
                f"environment.options={self.options} has no effect without environment.name. Leave it out."
            )

    @property
    def runs_programs(self) -> bool:
        """Whether the environment itself runs programs of the policy, whatever its tools do."""
        return self.name in RUN_PROGRAMS

    @property
    def on(self) -> bool:
        """Whether anything replies to the policy."""
        return bool(self.name or self.tools)
