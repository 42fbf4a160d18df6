"""From settings to what replies to the policy between its turns."""

from __future__ import annotations

from contextlib import ExitStack

from lightrft.config import Config
from lightrft.environments.episodes import Episodes, calls_limit
from lightrft.environments.tools import RUNS_PROGRAMS
from lightrft.models.processor import Processor
from lightrft.models.turns import announce, turn_template
from lightrft.trainer.turns import Turns
from lightrft.workers.boxes import check_box


def build_turns(config: Config, processor: Processor, stack: ExitStack) -> Turns | None:
    """The environments, whose processes end with the stack; None where a response is one turn.

    The processor tells the policy of the tools from now on, so prompts are made afterwards. ValueError for an environment or a
    chat template that cannot do it.
    """
    options = config.environment
    if not options.on:
        return None
    if options.runs_programs or RUNS_PROGRAMS.keys() & options.tools:
        seconds = options.timeout_seconds if options.workers else 0.0
        check_box(config.sandbox, "environment.timeout_seconds", seconds, before=calls_limit(options))
    template = turn_template(processor)
    episodes = stack.enter_context(Episodes(options, config.sandbox))
    schemas = episodes.schemas()
    if schemas and options.announce:
        announce(processor, schemas, options.calls)
    return Turns(episodes, template, options, config.tasks.max_prompt_tokens)
