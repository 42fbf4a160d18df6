"""Learning preferences without reinforcement learning as an objective: the better of several responses is to become more likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightrft.algorithms.policy_preference import (
    better_and_worse,
    chosen_nll,
    pair_ratios,
    response_values,
    sum_and_number,
)
from lightrft.algorithms.preference import COUNTS, count_pairs
from lightrft.algorithms.segments import segment_count
from lightrft.config import DPOConfig
from lightrft.datasets.comparisons import siblings
from lightrft.models.logprobs import logprobs
from lightrft.strategy.base import Frozen, Trainable
from lightrft.trainer.batching import pack, split
from lightrft.trainer.optimize import Averaging
from lightrft.trainer.preferences import pair_evaluation, tell_order
from lightrft.trainer.run import Evaluation, Metrics
from lightrft.types import Batch, Prompt, Terms, Trajectory

OUTPUT = "preference"
"""Name of grades that have none."""


@dataclass
class PolicyPreferences:
    """The objective of `lightrft dpo`: each prompt weighs the same, whatever the number of its responses."""

    config: DPOConfig
    function: partial[Tensor]
    """The loss, its options bound."""
    num_sums: int = len(COUNTS)

    @property
    def output(self) -> str:
        """Name of the grades that are learned from."""
        return self.config.output or OUTPUT

    @property
    def compares(self) -> bool:
        """Whether the loss learns from nothing but differences of grades."""
        return bool(self._asks("compares_responses", False))

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model that the run began with."""
        return bool(self._asks("needs_reference", True))

    @property
    def needs_divergence(self) -> bool:
        """Whether the loss takes the divergence from the reference."""
        return bool(self._asks("needs_divergence", False))

    @property
    def weighs_kinds(self) -> bool:
        """Whether the loss takes weights of desirable and of other responses."""
        return bool(self._asks("weighs_kinds", False))

    @property
    def averages(self) -> bool:
        """Whether a response is worth the mean over its tokens, not the sum."""
        if self.config.average == "as_loss":
            return bool(self._asks("averages", False))
        return self.config.average == "mean"

    def _asks(self, attribute: str, default: bool) -> Any:
        return getattr(self.function.func, attribute, default)

    @property
    def averaging(self) -> Averaging:
        """Every prompt weighs the same."""
        return Averaging("group", 1)

    @property
    def advice(self) -> str:
        """What may make the log-probs of equal models differ."""
        return (
            "they do not give the same log-probs. A model that drops units at random must not while it learns here; set "
            "model.attention=separate to see whether packing is the cause, or model.dtype=float32 for rounding."
        )

    def falling(self, by: float) -> str:
        """Says that the better responses have become less likely."""
        return f"the better responses have become less likely than they were for the reference, by {by:.2f} nats now"

    def responses(self, prompt: Prompt, group: int) -> list[Trajectory]:
        """All graded responses to the prompt."""
        return siblings(prompt, group)

    def logprobs(self, model: Trainable | Frozen, batch: Batch) -> Tensor:
        """(T,) log p of each token of a response, at temperature 1."""
        asked = partial(
            logprobs,
            temperature=1.0,
            max_logits=self.config.update.logits_per_chunk,
            exact_attention=self.config.model.attention == "separate",
        )
        return model.compute(asked, batch).values

    def loss(self, model: Trainable, batch: Batch) -> Terms:
        """The loss, (T,): each token carries that of its group."""
        found = self.logprobs(model, batch)
        values, grades = self.values(found, batch), _grades(batch)
        losses = self.losses(values, batch)
        if self.config.sft_coefficient:
            means = response_values(found, batch, average=True, reference=False)
            losses = losses + chosen_nll(
                means, grades, batch.groups, compares=self.compares, coefficient=self.config.sft_coefficient
            )
        metrics = {}
        if self.needs_reference:
            assert batch.ref is not None
            metrics["logp_shift/mean_abs"] = (found.detach() - batch.ref).abs()
        return Terms(losses[batch.segments], metrics, self._ratios(found.detach(), values.detach(), batch))

    def values(self, found: Tensor, batch: Batch) -> Tensor:
        """(S,): what each response is worth, from the log-probs of its tokens."""
        return response_values(found, batch, average=self.averages, reference=self.needs_reference)

    def losses(self, values: Tensor, batch: Batch) -> Tensor:
        """(S,): the chosen loss. ValueError if it is not one number for each response."""
        more = {"divergence": batch.baselines} if self.needs_divergence else {}
        losses = self.function(values, _grades(batch), batch.groups, **more)
        if not isinstance(losses, Tensor) or losses.shape != values.shape:
            raise ValueError(
                f"loss={self.config.loss} must return a tensor of shape ({values.numel()},), the loss of each response's group."
            )
        return losses

    def first_losses(self, found: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(S,) the loss as it is, and as it must be while the policy is its reference: that of log-ratios which are all 0."""
        values = self.values(found, batch)
        more = {"divergence": 0.0} if self.needs_divergence else {}
        right = self.function(torch.zeros_like(values), _grades(batch), batch.groups, **more)
        return self.losses(values, batch), right

    def _ratios(self, found: Tensor, values: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums and counts of what is measured by pair or by response."""
        better, worse = better_and_worse(_grades(batch), batch.groups, compares=self.compares)
        ratios: dict[str, tuple[Tensor, Tensor]] = {}
        if self.compares:
            ratios |= pair_ratios(values, better, worse)
        if self.needs_reference:
            shifts = response_values(found, batch, average=False, reference=True)
            ratios |= {
                "logp_shift/chosen": sum_and_number(shifts[better]),
                "logp_shift/rejected": sum_and_number(shifts[worse]),
            }
        return ratios

    def describe(self, drawn: Sequence[Trajectory]) -> Metrics:
        """How many responses have a grade."""
        return {"counts/responses_graded": float(sum(self.output in t.parts for t in drawn))}

    def examine(self, model: Trainable, batch: Batch) -> Tensor:
        """COUNTS of the implicit rewards; where the loss takes the divergence, a sign is that above or below it."""
        values = self.values(self.logprobs(model, batch), batch)
        if self.needs_divergence:
            assert batch.baselines is not None
            values = values - batch.baselines
        lengths = segment_count(batch.mask, batch.segments, batch.num_sequences)
        return count_pairs(values, _grades(batch), batch.groups, lengths).cpu()

    def look(self, model: Trainable, batch: Batch) -> Tensor:
        """(T,) log p of each token of a response."""
        return self.logprobs(model, batch)

    def tell(self, answers: Sequence[Trajectory], found: Tensor) -> None:
        """Parts `logp`, the log-prob of the response, and `logp_shift`, by how much it has risen over that by the reference; as the reward
        what the loss makes of it, see `values`, which is one of these or its mean over tokens; parts of `tell_order`, which goes by that;
        and column `new`, log p of each token."""
        told = []
        worth = self.values(found.detach().cpu().double(), pack(answers, inputs=False)).tolist()
        for t, column, value in zip(answers, split(found, answers), worth, strict=True):
            t.columns["new"], chosen = column, torch.tensor(t.mask)
            t.reward, logp = value, float(column[chosen].double().sum())
            told.append({"logp": logp})
            if self.needs_reference:
                told[-1]["logp_shift"] = logp - float(t.columns["ref"][chosen].double().sum())
        tell_order(answers, [{self.output: t.reward} for t in answers])
        for t, parts in zip(answers, told, strict=True):
            t.parts |= parts

    def evaluation(self, label: str, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> Evaluation:
        """Pair accuracy of the implicit rewards by task; with that of signs where a loss does not compare, whose responses may have no siblings."""
        signed = [] if self.compares else [self.output]
        return pair_evaluation(label, sums, weights, [self.output], signed)


def _grades(batch: Batch) -> Tensor:
    """(S,): what each response is worth."""
    assert batch.grades is not None
    return batch.grades[:, 0]
