"""From settings to what replies to the policy between its turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from lightrft.config import Config
from lightrft.environments.episodes import Episodes
from lightrft.environments.tools import RUNS_PROGRAMS
from lightrft.models.processor import Processor
from lightrft.models.turns import turn_template
from lightrft.trainer.turns import Turns
from lightrft.types import Message
from lightrft.workers.boxes import check_box

HOW = {
    "json": 'To call one, write <tool_call>{"name": NAME, "arguments": {...}}</tool_call>, and its result is sent to you.',
    "tags": "To call one, write <NAME>ARGUMENT</NAME>, and its result is sent to you.",
}
"""environment.calls -> what the policy is told of it."""


def build_turns(config: Config, processor: Processor, stack: ExitStack) -> Turns | None:
    """The environments, whose processes end with the stack; None where a response is one turn.

    The processor tells the policy of the tools from now on, so prompts are made afterwards. ValueError for an environment or a
    chat template that cannot do it.
    """
    options = config.environment
    if not options.on:
        return None
    if options.name == "repair" or RUNS_PROGRAMS.keys() & options.tools:
        seconds = options.timeout_seconds if options.workers else 0.0
        check_box(config.sandbox, "environment.timeout_seconds", seconds, before=options.calls_seconds)
    template = turn_template(processor)
    episodes = stack.enter_context(Episodes(options, config.sandbox))
    schemas = episodes.schemas()
    if schemas and options.announce:
        announce(processor, schemas, options.calls)
    return Turns(episodes, template, options, config.tasks.max_prompt_tokens)


def announce(processor: Processor, schemas: Sequence[dict[str, Any]], calls: str) -> None:
    """Lets every prompt tell of these tools: as the chat template does it or, where it does not or calls are written as tags, in the
    system message."""
    processor.tools, question = list(schemas), [Message(role="user", content="?")]
    told = processor.rendered(question)
    if calls != "json" or not all(_name(schema) in told for schema in schemas):
        processor.tools = []
        lines = [json.dumps(schema["function"], ensure_ascii=False) for schema in schemas]
        processor.preamble = "\n".join(["You can call these functions:", *lines, HOW[calls]])


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["function"]["name"])
