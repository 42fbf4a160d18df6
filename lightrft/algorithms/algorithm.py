"""An algorithm is a row of settings over pure functions; the trainer contains no algorithm-specific code."""

from __future__ import annotations

import difflib
import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from lightrft.algorithms.advantages import ADVANTAGES, Advantage, whiten
from lightrft.algorithms.correction import importance, on_policy
from lightrft.algorithms.kl import adaptive_kl
from lightrft.algorithms.losses import LOSSES, PolicyLoss, add_regularisers
from lightrft.algorithms.online_preference import ONLINE_LOSSES
from lightrft.algorithms.selection import (
    GROUP_FILTERS,
    RESPONSE_FILTERS,
    GroupFilter,
    ResponseFilter,
    high_entropy,
    mixed_outcomes,
    mixed_parts,
    mixed_turns,
)
from lightrft.algorithms.shaping import teacher_advantage, token_rewards
from lightrft.config import AlgorithmConfig
from lightrft.config.algorithm import EXACT
from lightrft.types import Batch, GroupOfTrajectories, Terms, Trajectory

Reduce = Callable[[Tensor], Tensor]  # the sum over ranks
Survey = Callable[[Tensor, Batch, Reduce], Tensor]
"""Log-probs (T,) under the policy as it is, all responses of an update on this rank, a sum over ranks -> marks (T,)."""


class Resolve(Protocol):
    """What a name or an import path stands for (utils/imports.py); passed in, as this package is pure."""

    def __call__(self, table: Mapping[str, Any], name: str, what: str, /) -> Any:
        """The entry of `table` called `name`, or what an import path gives; `what` names the kind in an error."""
        ...


@dataclass(frozen=True)
class Algorithm:
    """The functions of one row of settings, bound to it. All of them are pure."""

    config: AlgorithmConfig
    advantage: Callable[[Batch, AlgorithmConfig], tuple[Tensor, Tensor]]
    """Batch with rewards and whole groups, settings -> advantages (T,), returns (T,)."""
    policy_loss: Callable[[Tensor, Batch, AlgorithmConfig], Terms]
    """New log-probs (T,), batch with advantages, settings -> loss per token, without KL and entropy."""
    group_filter: GroupFilter
    """Whether to learn from a group of judged trajectories."""
    response_filter: ResponseFilter
    """Which responses of a group to learn from."""

    needs_critic: bool
    """Whether the advantage looks at batch.values; a function says so by an attribute `needs_values = True`."""

    needs_baseline: bool
    """Whether it looks at batch.baselines; a function says so by an attribute `needs_baseline = True`."""

    needs_parts: bool
    """Whether it looks at the parts of rewards, batch.grades and batch.part_weights; a function says so by `needs_parts = True`."""

    needs_turns: bool
    """Whether it looks at the rewards of turns, batch.turn_rewards; a function says so by `needs_turns = True`."""

    entropy_held: float
    """With algorithm.entropy_target: the coefficient of the entropy bonus in the steps in which that acts."""

    survey: Survey | None
    """Looks at all tokens of an update before its gradient and marks them; a loss says so by an attribute `survey`, see surveys.py."""

    functions: Mapping[str, Any]
    """advantage, loss, group_filter and response_filter as they were found, with the attributes that say what they need."""

    def learns_from(self, group: GroupOfTrajectories, weights: Mapping[str, float]) -> bool:
        """Whether the group filter keeps a group of judged trajectories; `weights`: reward name -> weight, of their task.

        What mixed_outcomes compares is what the advantage compares: the rewards, their parts, or those of turns as well.
        """
        if self.functions["group_filter"] is mixed_outcomes and self.needs_parts:
            return mixed_parts(group, weights)
        if self.functions["group_filter"] is mixed_outcomes and self.needs_turns:
            return mixed_turns(group)
        return self.group_filter(group)

    @property
    def keeps_all_groups(self) -> bool:
        """Whether no group is left out; a filter says so by an attribute `keeps_all = True`."""
        return bool(getattr(self.functions["group_filter"], "keeps_all", False))

    @property
    def needs_reference(self) -> bool:
        """Whether batch.ref must be filled; a loss says so by an attribute `needs_reference = True`."""
        return self.config.kl_coefficient != 0 or bool(
            getattr(self.functions["loss"], "needs_reference", False)
        )

    @property
    def whole_groups(self) -> bool:
        """Whether the loss compares the responses of a group, which no micro-batch may divide then; it says so by `compares_groups`."""
        return bool(getattr(self.functions["loss"], "compares_groups", False))

    @property
    def compares_chosen(self) -> bool:
        """Whether only the responses that are learned from count in their advantages; their filter says so by `compares_chosen`."""
        return bool(getattr(self.functions["response_filter"], "compares_chosen", False))

    @property
    def entrywise(self) -> bool:
        """Whether the loss of an entry looks at no other one, so that micro-batches may divide a response; a loss says so by an attribute
        `entrywise = True`."""
        alone = bool(getattr(self.functions["loss"], "entrywise", False))
        return alone and self.config.mismatch_level == "token" and not self.config.off_policy_mask_limit

    @property
    def zero_without_advantage(self) -> bool:
        """Whether a response of which all advantages are 0 has no part in the gradient, nor in what the coefficients of the next step are
        adapted to; a loss says so by an attribute `zero_without_advantage = True`."""
        row, led = self.config, getattr(self.functions["loss"], "zero_without_advantage", False)
        pulls = (
            row.kl_coefficient != 0 and row.kl_in == "loss",
            self.needs_teacher and row.teacher_in == "loss",
            row.entropy_coefficient != 0,
            row.kl_target != 0,
            row.entropy_target != 0,
        )
        return bool(led) and not any(pulls)

    def together(self, group_size: int) -> int:
        """Most responses that are never divided over two micro-batches."""
        most = int(getattr(self.functions["response_filter"], "most", group_size))
        return min(most, group_size) if self.whole_groups else 1

    @property
    def needs_squares(self) -> bool:
        """Whether the advantage looks at batch.squares; a function says so by an attribute `needs_squares = True`."""
        return bool(getattr(self.functions["advantage"], "needs_squares", False))

    @property
    def needs_optimal_values(self) -> bool:
        """Whether batch.baselines are values of the reference; a function says so by `needs_optimal_values = True`, beside `needs_baseline`."""
        return bool(getattr(self.functions["advantage"], "needs_optimal_values", False))

    @property
    def needs_old(self) -> bool:
        """Whether batch.old and batch.entropy must be filled before the update, however few updates follow."""
        return (
            self.needs_squares
            or self.config.high_entropy_fraction < 1
            or (self.config.kl_coefficient != 0 and self.config.kl_in == "reward")
            or (self.needs_teacher and self.config.teacher_in == "advantage")
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether batch.teacher must be filled."""
        return self.config.teacher_coefficient != 0

    def compute_advantages(self, batch: Batch, reduce: Reduce) -> None:
        """Fills rewards, advantages and returns, each (T,), of a batch with whole groups, from its scores. Every rank calls this."""
        batch.rewards = token_rewards(batch, self.config)
        advantages, batch.returns = self.advantage(batch, self.config)
        self.finish_advantages(batch, advantages, reduce)

    def finish_advantages(self, batch: Batch, advantages: Tensor, reduce: Reduce) -> None:
        """Fills advantages, (T,), from those of the estimator: whitening, clipping, the choice of uncertain tokens, the teacher."""
        config = self.config
        if config.whiten:
            advantages = whiten(advantages, batch.mask, reduce)
        if config.advantage_clip:
            advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
        if config.high_entropy_fraction < 1:
            advantages = (advantages * self._uncertain(batch, reduce)).to(advantages.dtype)
        if self.needs_teacher and config.teacher_in == "advantage":
            advantages = advantages + config.teacher_coefficient * teacher_advantage(batch)
        batch.advantages = advantages

    def _uncertain(self, batch: Batch, reduce: Reduce) -> Tensor:
        assert batch.entropy is not None, "algorithm.high_entropy_fraction needs the entropy at sampling"
        return high_entropy(
            batch.entropy,
            batch.mask,
            batch.segments,
            batch.num_sequences,
            share=self.config.high_entropy_fraction,
            over=self.config.high_entropy_scope,
            reduce=reduce,
        )

    def with_adapted_kl(self, divergence: float | None) -> Algorithm:
        """The algorithm of the next step, after one in which the divergence from the reference was this, per token."""
        if not self.config.kl_target or divergence is None:
            return self
        now = self.config.kl_coefficient
        return self.with_kl_coefficient(
            adaptive_kl(now, divergence, self.config.kl_target, self.config.kl_gain)
        )

    def with_kl_coefficient(self, kl_coefficient: float) -> Algorithm:
        """This algorithm with another weight of the divergence from the reference."""
        return replace(self, config=replace(self.config, kl_coefficient=kl_coefficient))

    def with_adapted_entropy(self, entropy: float | None) -> Algorithm:
        """The algorithm of the next step, after one in which the entropy was this, nats per token.

        c' = c + entropy_step below the target, c - entropy_step above it, at least 0, and the bonus has the weight c' if the entropy was at
        most the target, else 0. Skywork-OR1, He et al. 2025 (https://arxiv.org/abs/2505.22312), whose c has no floor.
        """
        row = self.config
        if not row.entropy_target or entropy is None:
            return self
        step = row.entropy_step if entropy < row.entropy_target else -row.entropy_step
        held = max(0.0, self.entropy_held + step)
        return self.with_entropy(held, held if entropy <= row.entropy_target else 0.0)

    def with_entropy(self, held: float, acting: float) -> Algorithm:
        """This algorithm with other weights of the entropy bonus: the one that is held, and that of the next step."""
        return replace(self, entropy_held=held, config=replace(self.config, entropy_coefficient=acting))

    def loss(self, new: Tensor, batch: Batch, entropy: Tensor | None = None) -> Terms:
        """Policy loss, divergence from the reference and entropy bonus of each token; 0 outside the mask.

        The policy loss carries the weights against the mismatch of engine and trainer, and those of steps of drawing.
        """
        terms = self.policy_loss(new, batch, self.config)
        weights, metrics = importance(new if batch.old is None else batch.old, batch, self.config)
        if self.config.off_policy_mask_limit:
            kept = on_policy(new, batch, self.config)
            weights = weights * kept
            metrics["off_policy/masked"] = 1 - kept
        if batch.step_weights is not None:
            weights = weights * batch.step_weights
        weighted = Terms(terms.loss * weights, {**terms.metrics, **metrics}, terms.ratios)
        return add_regularisers(weighted, new, batch, self.config, entropy=entropy)


def build(config: AlgorithmConfig, resolve: Resolve) -> Algorithm:
    """The algorithm that `config` describes, with its functions found, checked, and bound to their options.

    ValueError for an unknown name, a function that cannot be called as its role demands, an option that none
    takes or that one lacks, and settings that cannot work together. Loads nothing heavy: call it at start-up.
    """
    if config.kl == "k1" and config.kl_in == "loss" and config.kl_coefficient != 0:
        raise ValueError(
            "algorithm.kl=k1 with algorithm.kl_in=loss: its gradient is 0 on average, so it would add "
            "noise and no pull towards the reference. Set algorithm.kl=k3 or k2, or algorithm.kl_in=reward."
        )
    if config.kl == EXACT and config.kl_in == "reward" and config.kl_coefficient != 0:
        raise ValueError(
            f"algorithm.kl={EXACT} with algorithm.kl_in=reward: it is known where its gradient is, in the loss. Set algorithm.kl_in=loss, or "
            "algorithm.kl=k1."
        )
    roles = _roles(config, resolve)
    _refuse_unused(config.options, tuple(roles.values()))
    options = {kind: role.take(config.options) for kind, role in roles.items()}
    keep, choose = roles["group_filter"], roles["response_filter"]

    def bound_group_filter(group: Any) -> bool:
        return bool(keep.function(group, **options["group_filter"]))

    def bound_response_filter(group: GroupOfTrajectories, draw: random.Random) -> list[Trajectory]:
        return list(choose.function(group, draw, **options["response_filter"]))

    needs_critic, needs_baseline, needs_parts, needs_turns = (
        bool(getattr(roles["advantage"].function, name, False))
        for name in ("needs_values", "needs_baseline", "needs_parts", "needs_turns")
    )
    return Algorithm(
        config,
        _bound_advantage(roles["advantage"], options["advantage"]),
        _bound_loss(roles["loss"], options["loss"]),
        bound_group_filter,
        bound_response_filter,
        needs_critic,
        needs_baseline,
        needs_parts,
        needs_turns,
        config.entropy_coefficient,
        _bound_survey(roles["loss"], options["loss"], config),
        {kind: role.function for kind, role in roles.items()},
    )


def _roles(config: AlgorithmConfig, resolve: Resolve) -> dict[str, _Role]:
    """The functions that settings choose, by the name of the setting."""
    kinds: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
        "advantage": (ADVANTAGES, ("batch", "algo")),
        "loss": ({**LOSSES, **ONLINE_LOSSES}, ("new", "batch", "algo")),
        "group_filter": (GROUP_FILTERS, ("group",)),
        "response_filter": (RESPONSE_FILTERS, ("group", "draw")),
    }
    chosen = {kind: getattr(config, kind) for kind in kinds}
    return {
        kind: _Role(kind, chosen[kind], resolve(known, chosen[kind], kind), given)
        for kind, (known, given) in kinds.items()
    }


def _bound_advantage(advantage: _Role, options: dict[str, Any]) -> Advantage:
    """The advantage with its options; what it returns is looked at."""

    def bound(batch: Batch, algo: AlgorithmConfig) -> tuple[Tensor, Tensor]:
        result = advantage.function(batch, algo, **options)
        if not (isinstance(result, tuple) and len(result) == 2 and all(_is_column(x, batch) for x in result)):
            raise ValueError(
                f"{advantage} must return two tensors of shape ({batch.num_tokens},): advantages and returns."
            )
        return result

    return bound


def _bound_loss(loss: _Role, options: dict[str, Any]) -> PolicyLoss:
    """The loss with its options; what it returns is looked at."""

    def bound(new: Tensor, batch: Batch, algo: AlgorithmConfig) -> Terms:
        result = loss.function(new, batch, algo, **options)
        if not (isinstance(result, Terms) and _is_column(result.loss, batch)):
            raise ValueError(
                f"{loss} must return Terms with a loss of shape ({batch.num_tokens},), not averaged."
            )
        return result

    return bound


def _bound_survey(loss: _Role, options: dict[str, Any], config: AlgorithmConfig) -> Survey | None:
    """The loss's survey with the options of the loss, if it has one; what it returns is looked at."""
    survey = getattr(loss.function, "survey", None)
    if survey is None:
        return None

    def bound(present: Tensor, batch: Batch, reduce: Reduce) -> Tensor:
        result: Tensor = survey(present, batch, config, reduce, **options)
        if not _is_column(result, batch):
            raise ValueError(f"{loss}: its survey must return a tensor of shape ({batch.num_tokens},).")
        return result

    return bound


def _is_column(value: object, batch: Batch) -> bool:
    return isinstance(value, Tensor) and value.shape == (batch.num_tokens,)


class _Role:
    """A function chosen for one part of the algorithm: what it is called with, and which options it takes."""

    def __init__(self, kind: str, name: str, function: Any, given: tuple[str, ...]) -> None:
        self.kind, self.name, self.function = kind, name, function
        if not callable(function):
            raise ValueError(f"{self} is a {type(function).__name__}, not a function.")
        parameters = inspect.signature(function).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        swallows = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if len(positional) < len(given) and not swallows:
            raise ValueError(
                f"{self} must take ({', '.join(given)}) first; it takes {inspect.signature(function)}."
            )
        extra = [*positional[len(given) :], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
        self.accepts = {p.name for p in extra if p.kind is not p.POSITIONAL_ONLY}
        self.requires = {p.name for p in extra if p.default is p.empty}
        self.accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def __str__(self) -> str:
        return f"algorithm.{self.kind}={self.name}"

    def takes(self, option: str) -> bool:
        return self.accepts_any or option in self.accepts

    def take(self, options: Mapping[str, float]) -> dict[str, float]:
        """The part of `options` that this function takes; ValueError if one that it needs is not among them."""
        for name in sorted(self.requires - options.keys()):
            raise ValueError(f"{self} needs the option '{name}'. Set algorithm.options={{{name}: ...}}.")
        ranges = getattr(self.function, "ranges", {})
        for name, value in options.items():
            if name in ranges and value not in ranges[name]:
                raise ValueError(f"algorithm.options.{name}={value:g}: must be {ranges[name]} with {self}.")
        return {name: value for name, value in options.items() if self.takes(name)}


def _refuse_unused(options: Mapping[str, float], roles: tuple[_Role, ...]) -> None:
    known = sorted(set().union(*(role.accepts for role in roles)))
    for name in options:
        if any(role.takes(name) for role in roles):
            continue
        close = difflib.get_close_matches(name, known, n=1)
        perhaps = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(
            f"algorithm.options.{name}: none of {', '.join(map(str, roles))} takes it.{perhaps} They take: "
            f"{', '.join(known) or 'no options'}."
        )
