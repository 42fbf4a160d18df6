"""A response that grows: begun with what an engine sampled first, asked to go on, extended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightrft.engines.sampling import stream
from lightrft.models import experts, supports
from lightrft.models.processor import Processor
from lightrft.models.words import response_positions
from lightrft.types import Completion, Continuation, Message, Prompt, Trajectory

FORKED = 1
"""Tells the random numbers of forks from those that an engine draws for a response that goes on."""


def begun(prompt: Prompt, group: int, completion: Completion, processor: Processor) -> Trajectory:
    """A new response, with what was sampled."""
    t = Trajectory(
        prompt=prompt,
        group=group,
        token_ids=[],
        mask=[],
        behavior=[],
        finish="paused",
        weight_version=completion.weight_version,
        stream=completion.stream,
    )
    extend(t, completion, processor)
    return t


def continued(t: Trajectory, max_tokens: int) -> Prompt:
    """The prompt with the response so far, for an engine to go on by at most so many tokens."""
    tokens, positions = [*t.prompt.token_ids, *t.token_ids], t.prompt.positions
    if positions is not None:
        positions = torch.cat([positions, response_positions(t)], -1)
    continuation = Continuation(len(t), t.stream, max_tokens, tuple(t.mask))
    return replace(t.prompt, token_ids=tokens, positions=positions, continuation=continuation)


def extend(t: Trajectory, completion: Completion, processor: Processor, *, turn: int = 0) -> None:
    """Adds what an engine sampled. The text of a response is that of its tokens from place `turn` on, where its last turn begins."""
    t.support = supports.added(t.support, len(t), completion.support, len(completion.token_ids))
    t.token_ids += completion.token_ids
    t.mask += [True] * len(completion.token_ids)
    t.behavior += completion.logprobs
    t.finish = completion.finish
    t.answer = processor.text(t.token_ids[turn:])
    t.states, t.made = completion.states, completion.made
    if completion.experts is not None:
        t.experts = experts.added(t.experts, len(t.prompt.token_ids) + len(t) - 1, completion.experts)


def fork(row: Trajectory, tokens: int, turns: int, number: int) -> Trajectory:
    """A row that begins with the first `tokens` of another, up to the end of so many turns of the policy, and random numbers of its own. It
    learns from none of them: the other row does."""
    spoken, said = 0, list[Message]()
    for message in row.said:
        if spoken == turns:
            break
        said.append(message)
        spoken += message["role"] == "assistant"
    return Trajectory(
        prompt=row.prompt,
        group=row.group,
        token_ids=row.token_ids[:tokens],
        mask=[False] * tokens,
        behavior=[0.0] * tokens,
        finish="paused",
        said=said,
        weight_version=row.weight_version,
        stream=stream(row.stream, number, FORKED),
    )


def share_with_forks(trajectories: Sequence[Trajectory]) -> None:
    """Gives the forks of judged responses what these were given: reward and baseline, and each chosen token the advantage.

    ValueError where an advantage differs between the tokens of a response: it says nothing of those of another row.
    """
    for t in (t for t in trajectories if t.forks):
        chosen = torch.tensor(t.mask)
        for name in ("advantages", "returns"):
            own = t.columns[name][chosen].unique()
            if len(own) > 1:
                raise ValueError(
                    f"environment.forks=true with an advantage that differs between the tokens of a response ({t.prompt.id}): a fork is "
                    "learned from with one number. Set algorithm.advantage to one that gives a number for each response, such as group_norm, "
                    "or environment.forks=false."
                )
            for row in t.forks:
                row.columns[name] = torch.where(torch.tensor(row.mask), own.sum(), 0.0)
        for row in t.forks:
            row.columns["rewards"] = torch.zeros(len(row))
            row.reward, row.parts = t.reward, t.parts
            row.baseline, row.baseline_parts = t.baseline, t.baseline_parts


def turn_rewards(trajectories: Sequence[Trajectory]) -> Tensor:
    """(T,) over all responses: what the environment gave for each turn, at the last token of it, and 0 elsewhere."""
    found: list[float] = []
    for t in trajectories:
        row = [0.0] * len(t)
        ends = [n for n, chosen in enumerate(t.mask) if chosen and not any(t.mask[n + 1 : n + 2])]
        # There are no ends where algorithm.truncated=mask has left no token.
        for place, reward in zip(ends, t.step_rewards, strict=False):
            row[place] = reward
        found += row
    return torch.tensor(found)
