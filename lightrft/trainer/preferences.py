"""Training of a reward model as an objective: give the better of several responses to a prompt the higher number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import torch
from torch import Tensor

from lightrft.algorithms.preference import (
    COUNTS,
    PreferenceLoss,
    count_pairs,
    group_mean,
    measures,
    pairs,
    signs,
)
from lightrft.algorithms.segments import segment_count
from lightrft.config import RewardTrainingConfig
from lightrft.console.pairs import line, with_interval
from lightrft.datasets.comparisons import siblings
from lightrft.models.reward import values
from lightrft.runs.trajectories import ORDERED
from lightrft.strategy.base import Trainable
from lightrft.trainer.batching import by_group
from lightrft.trainer.optimize import Averaging
from lightrft.trainer.run import Evaluation, Metrics
from lightrft.types import Batch, Inputs, Prompt, Terms, Trajectory


@dataclass(frozen=True)
class Preferences:
    """The objective of `lightrft reward`: each prompt weighs the same, whatever the number of its responses."""

    config: RewardTrainingConfig
    function: PreferenceLoss
    """The loss of one output, its options bound."""

    @property
    def averaging(self) -> Averaging:
        """Every prompt weighs the same."""
        return Averaging("group", 1)

    @property
    def num_sums(self) -> int:
        """COUNTS of each output."""
        return len(COUNTS) * len(self.config.outputs)

    def responses(self, prompt: Prompt, group: int) -> list[Trajectory]:
        """All graded responses to the prompt."""
        return siblings(prompt, group)

    def loss(self, model: Trainable, batch: Batch) -> Terms:
        """The sum of the outputs' losses, (T,): each token carries that of its group. Differences of `values` in float32."""
        assert batch.grades is not None
        found = self._values(model, batch)
        total = torch.zeros_like(found[:, 0])
        for place, name in enumerate(self.config.outputs):
            column, grades = found[:, place], batch.grades[:, place]
            total = total + self._of_output(column, grades, batch.groups)
            if name in self.config.signed:
                total = total + signs(column, grades, batch.groups)
        return Terms(total[batch.segments], {"pairs/accuracy": _right(found.detach(), batch)[batch.segments]})

    def _of_output(self, column: Tensor, grades: Tensor, groups: Tensor) -> Tensor:
        """The chosen loss of one output. ValueError if it is not of one number for each response."""
        loss = self.function(column, grades, groups)
        if not isinstance(loss, Tensor) or loss.shape != column.shape:
            raise ValueError(
                f"loss={self.config.loss} must return a tensor of shape ({column.numel()},), the loss of each response's group."
            )
        return loss

    def describe(self, drawn: Sequence[Trajectory]) -> Metrics:
        """How many responses have a grade."""
        graded = sum(not all(math.isnan(grade) for grade in t.parts.values()) for t in drawn)
        return {"counts/responses_graded": float(graded)}

    def examine(self, model: Trainable, batch: Batch) -> Tensor:
        """COUNTS of each output, one after the other."""
        assert batch.grades is not None
        found = self._values(model, batch)
        assert isinstance(batch.inputs, Inputs)
        everything = torch.ones_like(batch.mask)
        lengths = segment_count(everything, batch.segments, batch.num_sequences)
        # With their prompts, which are equally long unless responses are media: then of these the longer has more tokens.
        lengths = lengths + lengths.new_tensor([end - start for start, end in batch.inputs.prompt_spans])
        columns = zip(found.unbind(1), batch.grades.unbind(1), strict=True)
        return torch.cat([count_pairs(v, g, batch.groups, lengths) for v, g in columns]).cpu()

    def look(self, model: Trainable, batch: Batch) -> Tensor:
        """(S, K): what the model says of each response."""
        return self._values(model, batch)

    def tell(self, answers: Sequence[Trajectory], found: Tensor) -> None:
        """What the model says of a response by output as parts, beside those of `tell_order`, and its mean as the reward."""
        rows = found.detach().cpu().double().tolist()
        tell_order(answers, [dict(zip(self.config.outputs, row, strict=True)) for row in rows])
        for t, row in zip(answers, rows, strict=True):
            t.parts |= dict(zip(self.config.outputs, row, strict=True))
            t.reward = sum(row) / len(row)

    def evaluation(self, label: str, sums: Mapping[str, Tensor], weights: Mapping[str, float]) -> Evaluation:
        """Pair accuracy by task and output, see `pair_evaluation`."""
        return pair_evaluation(label, sums, weights, self.config.outputs, self.config.signed)

    def _values(self, model: Trainable, batch: Batch) -> Tensor:
        separate = self.config.model.attention == "separate"
        return model.compute(partial(values, exact_attention=separate), batch)


def pair_evaluation(
    label: str,
    sums: Mapping[str, Tensor],
    weights: Mapping[str, float],
    outputs: Sequence[str],
    signed: Sequence[str],
) -> Evaluation:
    """Pair accuracy by task and output, with what rules of length have beside it; the mean over outputs, then over tasks.

    `sums`: COUNTS of each output, by task. Without pairs, the accuracy of signs is taken for the mean.
    """
    found: dict[str, float] = {}
    lines: list[str] = []
    means: dict[str, float] = {}
    for task, counts in sums.items():
        accuracies = []
        for name, part in zip(outputs, counts.split(len(COUNTS)), strict=True):
            counted = with_interval(measures(part))
            known = {k: v for k, v in counted.items() if name in signed or "sign" not in k}
            if "accuracy" in known:
                accuracies.append(known["accuracy"])
            elif "sign_accuracy" in known:
                accuracies.append(known["sign_accuracy"])
            found |= {f"{task}/{name}/{measure}": value for measure, value in known.items()}
            lines.append(line(f"held-out pairs ({label}), {task}, {name}", known))
        if accuracies:
            means[task] = sum(accuracies) / len(accuracies)
    if means:
        total = sum(weights[task] for task in means)
        found["mean"] = sum(mean * weights[task] for task, mean in means.items()) / total
    return Evaluation("pairs", found, "\n".join(lines))


def tell_order(answers: Sequence[Trajectory], found: Sequence[Mapping[str, float]]) -> None:
    """Puts the grades of given responses under given_NAME and, as part `ordered`, the share of their group's pairs with different
    grades whose better response has the higher value; equal values count half. `found`: of each response, value by NAME."""
    known = {id(t): values for t, values in zip(answers, found, strict=True)}
    for group in by_group(answers):
        right = [
            (apart > 0) + 0.5 * (apart == 0)
            for one, other in permutations(group, 2)
            for name, value in known[id(one)].items()
            if one.parts.get(name, math.nan) > other.parts.get(name, math.nan)
            for apart in (value - known[id(other)][name],)
        ]
        for t in group:
            t.parts = {f"given_{name}": grade for name, grade in t.parts.items()}
            t.parts |= {ORDERED: sum(right) / len(right)} if right else {}


def _right(found: Tensor, batch: Batch) -> Tensor:
    """(S,): the share of the pairs of a response's group, over all outputs, that are ordered rightly; a half without any."""
    assert batch.grades is not None
    right, members = [], []
    for column, grades in zip(found.unbind(1), batch.grades.unbind(1), strict=True):
        better, worse = pairs(grades, batch.groups)
        apart = column[better] - column[worse]
        right.append((apart > 0).to(found.dtype) + 0.5 * (apart == 0))
        members.append(better)
    half = torch.zeros_like(found[:, 0])
    compared = group_mean(torch.ones_like(torch.cat(right)), torch.cat(members), batch.groups)
    return torch.where(
        compared > 0, group_mean(torch.cat(right), torch.cat(members), batch.groups), half + 0.5
    )
