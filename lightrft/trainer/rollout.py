"""Prompts in, groups of trajectories out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lightrft.algorithms.algorithm import Algorithm
from lightrft.config import Config, RolloutConfig
from lightrft.config.rollout import OLD
from lightrft.engines.base import Engine, EngineError
from lightrft.models.processor import Processor
from lightrft.models.supports import fault, restricted
from lightrft.parallel.world import World
from lightrft.trainer.responses import begun, continued, extend
from lightrft.trainer.turns import Turns
from lightrft.types import Completion, Prompt, Sampling, Trajectory


def rollout(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    processor: Processor,
    *,
    first_group: int = 0,
    unfinished: Sequence[Trajectory] = (),
    most_now: int = 0,
    turns: Turns | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Trajectory]]:
    """`sampling.n` responses to each prompt; each prompt's responses are one group, numbered from `first_group` by place.

    `unfinished` responses of earlier calls go on, and are changed in place. With `most_now` no response gets more tokens than that
    in this call; what reaches it is paused. With `turns` an environment replies to each turn, and the response goes on. `progress`
    is told how many responses are finished, and of how many. Sampled tokens are kept as sampled; the decoded response is for
    rewards and readers only.
    """
    unfinished = _with_room(unfinished, sampling.max_tokens)
    sampling = processor.stopping(sampling)
    total = len(prompts) * sampling.n + len(unfinished)

    def generate(asked: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        open_now = sum(sampling.n if prompt.continuation is None else 1 for prompt in asked)
        tell = None if progress is None else lambda done, _tokens: progress(total - open_now + done, total)
        completions = engine.generate(asked, sampling, tell)
        _check(engine, asked, completions, sampling)
        return completions

    if turns is not None:
        conversed: list[list[Trajectory]] = []
        with turns.conversations(engine, sampling) as talks:
            asked = talks.begin(prompts, first_group)
            completions = generate(asked, replace(sampling, max_tokens=talks.most))
            conversed = _groups(asked, completions, sampling, first_group, processor)
            talks.go_on(conversed, generate, processor)
        return conversed
    limit = min(sampling.max_tokens, most_now or sampling.max_tokens)
    asked = [*prompts, *(continued(t, min(limit, sampling.max_tokens - len(t))) for t in unfinished)]
    completions = generate(asked, replace(sampling, max_tokens=limit))
    groups = _groups(prompts, completions[: len(prompts)], sampling, first_group, processor)
    for t, (completion,) in zip(unfinished, completions[len(prompts) :], strict=True):
        extend(t, completion, processor)
    for t in [t for group in groups for t in group] + unfinished if most_now else ():
        if t.finish == "length" and len(t) < sampling.max_tokens:
            t.finish = "paused"
    return groups


def _groups(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    sampling: Sampling,
    first_group: int,
    processor: Processor,
) -> list[list[Trajectory]]:
    """The responses to each prompt as a group."""
    groups = []
    for place, (prompt, answers) in enumerate(zip(prompts, completions, strict=True)):
        number = first_group + sampling.first_index + place * sampling.index_stride
        groups.append([begun(prompt, number, completion, processor) for completion in answers])
    return groups


def _with_room(unfinished: Sequence[Trajectory], max_tokens: int) -> list[Trajectory]:
    """The responses that may get another token; the others, from before the limit was lowered, are at their end."""
    for t in unfinished:
        if len(t) >= max_tokens:
            t.finish = "length"
    return [t for t in unfinished if len(t) < max_tokens]


def _check(
    engine: Engine, asked: Sequence[Prompt], found: Sequence[Sequence[Completion]], sampling: Sampling
) -> None:
    """EngineError if an engine gave something else than was asked for."""
    told = ""
    if len(found) != len(asked):
        told = f"responses to {len(found)} prompts instead of {len(asked)}"
    for prompt, answers in zip(asked, found, strict=False):
        wanted = sampling.n if prompt.continuation is None else 1
        if len(answers) != wanted:
            told = told or f"{len(answers)} responses to a prompt instead of {wanted}"
        for c in answers:
            if len(c.logprobs) != len(c.token_ids):
                told = told or f"{len(c.logprobs)} log-probs for {len(c.token_ids)} tokens"
            if sampling.support:
                told = told or fault(c, restricted(sampling, prompt, len(c.token_ids)))
    if told:
        name = f"{type(engine).__module__}:{type(engine).__name__}"
        asked_for = "(support=True) " * sampling.support
        raise EngineError(
            f"the engine {name} gave {told}. Learning needs all of them; lightrft.testing.check_engine {asked_for}says what an engine lacks."
        )


def needs_old(config: Config, algorithm: Algorithm) -> bool:
    """Whether the log-probs at sampling must be computed by themselves.

    With a single update per step of new responses they are the new ones, bit for bit, and the pass is left out.
    """
    several = config.update.epochs * config.update.num_minibatches > 1
    roll = config.rollout
    routed = config.rollout.routing_replay == OLD
    older = config.replay.groups_per_step > 0 or roll.extra_groups == "carry_over" or roll.is_late
    return algorithm.needs_old or several or older or routed


def training_sampling(config: RolloutConfig, seed: int, world: World | None = None) -> Sampling:
    """How responses to learn from are sampled; with `world`, by every rank of it to its share of the prompts."""
    world = World() if world is None else world
    return Sampling(
        first_index=world.rank,
        index_stride=world.size,
        n=config.group_size,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        first_token_temperature=config.first_token_temperature,
        first_token_top_k=config.first_token_top_k,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        stop=tuple(config.stop),
        seed=seed,
        support=config.keep_sampling_mask,
    )
