"""Comparing given responses with the model that a run began with: its log-probs, the divergence from it, and a check that both agree at first."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightrft.strategy.base import Frozen, Trainable
from lightrft.trainer.batching import Batching, by_group
from lightrft.trainer.score import fill
from lightrft.types import Batch, Prompt, Trajectory
from lightrft.utils.interrupt import Interrupt

log = logging.getLogger("lightrft")
FALLING = 10
"""Steps in a row in which the better responses lose probability, before a run speaks of it."""
TOLERANCE = 0.02
"""How far the first loss may lie from what it must be, as a share of that, or of 1 if that is less."""


class Judgement(Protocol):
    """What an objective says to who compares with a reference."""

    @property
    def needs_divergence(self) -> bool:
        """Whether its loss takes the divergence from the reference, as Trajectory.baseline."""
        ...

    @property
    def advice(self) -> str:
        """What to say where policy and reference do not agree in the first step: what differs, and what to try."""
        ...

    def falling(self, by: float, /) -> str:
        """What to say where the better responses have fallen `by` so much below what they were worth to the reference."""
        ...

    def logprobs(self, model: Trainable | Frozen, batch: Batch, /) -> Tensor:
        """(T,) log p of each token of a response."""
        ...

    def first_losses(self, logprobs: Tensor, batch: Batch, /) -> tuple[Tensor, Tensor]:
        """(S,) the loss of each response's group, and what it is for a policy that is its reference."""
        ...


@dataclass
class Referee:
    """Fills column `ref`, measures the divergence before an update, and says when chosen responses fall. Called by all ranks."""

    judgement: Judgement
    policy: Trainable
    reference: Frozen
    batching: Batching
    interrupt: Interrupt
    shifts: deque[float] = field(default_factory=lambda: deque(maxlen=FALLING), init=False)

    def score(self, answers: Sequence[Trajectory], *, first: bool) -> dict[str, float]:
        """All that an update needs; in the `first` step, ValueError unless policy and reference are the same model."""
        self.fill(answers)
        told = {}
        if self.judgement.needs_divergence:
            divergence = self.divergence(answers)
            for t in answers:
                t.baseline = divergence
            told["kto/divergence"] = divergence
        if first:
            self.check(answers)
        return told

    @torch.no_grad()
    def fill(self, answers: Sequence[Trajectory]) -> None:
        """Column `ref`: log-probs of the reference."""
        fill(answers, lambda batch: (self.judgement.logprobs(self.reference, batch),), "ref",
             batching=self.batching, interrupt=self.interrupt)  # fmt: skip

    @torch.no_grad()
    def divergence(self, answers: Sequence[Trajectory]) -> float:
        """The mean log-ratio, at least 0, of responses that belong to another prompt of the step: the next one's, the first one's to the
        last. Over all ranks, so that neither micro-batches nor who has what change it."""
        return self.mean_ratio(self.log_ratios(mismatched(answers, self.batching)))

    @torch.no_grad()
    def log_ratios(self, apart: Sequence[Trajectory]) -> Tensor:
        """(2,) float64: the sum of the log-ratios of this rank's responses, and how many they are."""
        self.fill(apart)
        fill(apart, lambda batch: (self.judgement.logprobs(self.policy, batch),), "old",
             batching=self.batching, interrupt=self.interrupt)  # fmt: skip
        ratios = [float((t.columns["old"] - t.columns["ref"])[torch.tensor(t.mask)].sum()) for t in apart]
        return torch.tensor([sum(ratios), len(ratios)], dtype=torch.float64)

    def mean_ratio(self, local: Tensor) -> float:
        """The mean of `log_ratios` over all ranks, at least 0."""
        total, count = (float(x) for x in self.batching.world.sum(local))
        return max(0.0, total / max(count, 1.0))

    @torch.no_grad()
    def check(self, answers: Sequence[Trajectory]) -> None:
        """ValueError unless the loss is what it must be while nothing has been learned: ln 2 for dpo, 1 / (4 beta^2) for ipo."""
        sums = torch.zeros(3, dtype=torch.float64)
        for _, batch, counts in self.batching.rounds(answers):
            logprobs = self.judgement.logprobs(self.policy, batch)
            found, right = self.judgement.first_losses(logprobs, batch)
            if counts:
                parts = [found.double().sum(), right.double().sum(), torch.tensor(float(len(found)))]
                sums += torch.stack([part.cpu().double() for part in parts])
        found_mean, right_mean, number = self.batching.world.sum(sums).tolist()
        found_mean, right_mean = found_mean / max(number, 1), right_mean / max(number, 1)
        if not abs(found_mean - right_mean) <= TOLERANCE * max(1.0, abs(right_mean)):
            raise ValueError(
                f"the loss of the first step is {found_mean:.6f}, and while policy and reference are the same model it must be "
                f"{right_mean:.6f}: {self.judgement.advice}"
            )

    def watch(self, metrics: dict[str, float]) -> None:
        """Says in the log when the better responses have lost probability in every one of the last steps."""
        if "logp_shift/chosen" not in metrics:
            return
        self.shifts.append(metrics["logp_shift/chosen"])
        if len(self.shifts) == FALLING and max(self.shifts) < 0 and self.shifts[-1] < self.shifts[0]:
            log.warning(
                "%s, in each of %d steps: the loss asks for a difference only. Add sft_coefficient (0.1 to 1), or lower optimizer.learning_rate.",
                self.judgement.falling(-self.shifts[-1]), FALLING,
            )  # fmt: skip
            self.shifts.clear()

    def state(self) -> list[float]:
        """The last steps of `watch`, for a checkpoint."""
        return list(self.shifts)

    def load(self, state: Sequence[float]) -> None:
        """Goes on from a `state`."""
        self.shifts = deque(state, maxlen=FALLING)


def mismatched(answers: Sequence[Trajectory], batching: Batching) -> list[Trajectory]:
    """The prompts of this rank's groups, each with the responses of the next group of the step, in the order of their numbers."""
    mine = {group[0].group: group for group in by_group(answers)}
    everywhere: dict[int, list[tuple[list[int], list[bool]]]] = {}
    for part in batching.world.gather(
        {name: [(t.token_ids, t.mask) for t in group] for name, group in mine.items()}
    ):
        everywhere |= part
    order = sorted(everywhere)
    following = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [
        answered(group[0].prompt, name, tokens, mask)
        for name, group in mine.items()
        for tokens, mask in everywhere[following[name]]
    ]


def answered(prompt: Prompt, group: int, tokens: list[int], mask: list[bool]) -> Trajectory:
    """The prompt with a response that may be that to another."""
    return Trajectory(prompt, group, tokens, mask, [0.0] * len(tokens), "stop")
