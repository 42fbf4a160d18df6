"""From settings to what replies to the policy between its turns."""

from __future__ import annotations

from contextlib import ExitStack

from lightrft.algorithms.algorithm import Algorithm
from lightrft.config import Config
from lightrft.environments.episodes import Episodes, calls_limit
from lightrft.environments.tools import RUNS_PROGRAMS
from lightrft.models.processor import Processor
from lightrft.models.turns import announce, turn_template
from lightrft.trainer.turns import Turns
from lightrft.workers.boxes import check_box


def check_forks(config: Config, algorithm: Algorithm) -> None:
    """ValueError for an algorithm that says of each token of a response something of its own, counts the tokens of its first row alone, or
    compares rows as if they were responses."""
    if not config.environment.forks:
        return
    row = config.algorithm
    alone = getattr(algorithm.functions["advantage"], "counts_tokens", False)
    by_token = algorithm.needs_critic or algorithm.needs_turns or algorithm.needs_squares
    refused = {
        f"algorithm.advantage={row.advantage}": by_token or alone,
        f"algorithm.loss={row.loss}": algorithm.whole_groups
        or getattr(algorithm.functions["loss"], "fits_optimal_values", False),
        f"algorithm.high_entropy_fraction={row.high_entropy_fraction:g}": row.high_entropy_fraction < 1,
        "algorithm.kl_in=reward": row.kl_coefficient != 0 and row.kl_in == "reward",
        "algorithm.teacher_in=advantage": algorithm.needs_teacher and row.teacher_in == "advantage",
        f"algorithm.gamma={row.gamma:g}": row.gamma != 1,
        "algorithm.whiten=true": row.whiten,
        f"algorithm.overlong_buffer={row.overlong_buffer}": row.overlong_buffer > 0,
    }
    wrong = next((setting for setting, here in refused.items() if here), "")
    if wrong:
        raise ValueError(
            f"environment.forks=true with {wrong}: the rows of a response have one advantage, that of the whole, and {wrong} asks of single tokens, or "
            "counts those of one row. Leave one of them out."
        )


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
