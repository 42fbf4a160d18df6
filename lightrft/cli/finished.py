"""Commands for a finished model: talk with it, and upload it."""

from __future__ import annotations

from collections.abc import Sequence

from lightrft.cli.loading import run_folder
from lightrft.cli.options import ChatOptions, PushOptions, parsed


def chat(args: Sequence[str]) -> int:
    """Talk with a model in the terminal: lightrft chat RUN, or lightrft chat MODEL."""
    own = parsed(ChatOptions, "chat", args)
    for name, fits, range_ in (
        ("temperature", 0 <= own.temperature < float("inf"), "at least 0"),
        ("top-p", 0 < own.top_p <= 1, "above 0 and at most 1"),
        ("max-tokens", own.max_tokens >= 1, "at least 1"),
    ):
        if not fits:
            raise ValueError(f"--{name} must be {range_}.")
    from lightrft.commands import chat as command
    from lightrft.types import Sampling

    sampling = Sampling(
        max_tokens=own.max_tokens, temperature=own.temperature, top_p=own.top_p, seed=own.seed
    )
    return command.chat(own.model, own.system, sampling)


def push(args: Sequence[str]) -> int:
    """Upload a run's model with its card to the hub: lightrft push RUN OWNER/NAME [--dry-run]."""
    own = parsed(PushOptions, "push", args)
    run = run_folder(str(own.run))
    from lightrft.commands import push as command

    return command.push(run, own.name, dry_run=own.dry_run, private=own.private, viewer=own.viewer)
