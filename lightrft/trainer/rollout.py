"""Prompts in, groups of trajectories out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lightrft.algorithms.algorithm import Algorithm
from lightrft.config import Config, RolloutConfig
from lightrft.models.logprobs import LogProbs, logprobs
from lightrft.models.processor import Processor
from lightrft.strategy.engines.base import Engine
from lightrft.strategy.world import World
from lightrft.types import Batch, Prompt, Sampling, Trajectory


def rollout(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    processor: Processor,
    *,
    first_group: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Trajectory]]:
    """`sampling.n` answers to each prompt; each prompt's answers are one group, numbered from `first_group` by place.

    `progress` is told how many answers are finished, and of how many. Sampled tokens are kept as sampled; the decoded answer is for rewards and readers only.
    """
    total = len(prompts) * sampling.n
    tell = None if progress is None else lambda finished, tokens: progress(finished, total)
    completions = engine.generate(prompts, sampling, tell)
    return [
        [
            Trajectory(
                prompt=prompt,
                group=first_group + sampling.place + place * sampling.stride,
                token_ids=list(c.token_ids),
                mask=[True] * len(c.token_ids),
                behavior=list(c.logprobs),
                finish=c.finish,
                answer=processor.text(c.token_ids),
                weight_version=c.weight_version,
            )
            for c in answers
        ]
        for place, (prompt, answers) in enumerate(zip(prompts, completions, strict=True))
    ]


def training_logprobs(module: nn.Module, batch: Batch, config: Config) -> LogProbs:
    """Log-probs and entropy of a batch under the distribution that `training_sampling` draws from."""
    return logprobs(
        module,
        batch,
        temperature=config.rollout.temperature,
        first_temperature=config.rollout.first_temperature,
        max_logits=config.update.logits_per_chunk,
        exact_attention=config.model.attention == "separate",
    )


def needs_old(config: Config, algorithm: Algorithm) -> bool:
    """Whether the log-probs at sampling must be computed by themselves.

    With a single update per step of new answers they are the new ones, bit for bit, and the pass is left out.
    """
    several = config.update.epochs * config.update.minibatches > 1
    reused = config.replay.groups > 0 or config.rollout.surplus == "keep"
    return algorithm.needs_old or several or reused


def training_sampling(config: RolloutConfig, seed: int, world: World | None = None) -> Sampling:
    """How answers to learn from are drawn; with `world`, by every rank of it to its share of the questions."""
    world = World() if world is None else world
    return Sampling(
        place=world.rank,
        stride=world.size,
        n=config.group_size,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        first_temperature=config.first_temperature,
        first_top_k=config.first_top_k,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        stop=tuple(config.stop),
        seed=seed,
    )
