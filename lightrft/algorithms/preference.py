"""Losses and measures of comparisons: which of the responses to one prompt is better, and by how much.

A group holds the responses to one prompt; a pair is a group of two, a ranking of K a group of K. Each response has a grade
for each output of a reward model, NaN where nobody graded it. Two responses of one group with different grades are a pair; equal
grades are none. Everything here speaks of one output: `values` (S,) are what the model says, `grades` (S,) what is right,
`groups` (S,) which responses belong together. No group may be divided over two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightrft.config.ranges import NOT_NEGATIVE

PreferenceLoss = Callable[..., Tensor]
"""(values, grades, groups, *, options) -> (S,): each response carries the loss of its group, 0 where the group teaches nothing. One that
learns from nothing but differences of grades says so by an attribute `compares_responses = True`."""
COUNTS = (
    "pairs", "right", "tied", "longer", "same_length", "right_longer", "right_shorter", "signed", "right_sign", "positive",
)  # fmt: skip
"""What `count_pairs` counts, in its order. right: the better response has the higher value, a tie counts half; longer: the better
response is the longer one; right_longer, right_shorter: right among the pairs whose better response is longer, shorter; signed:
responses whose grade is not 0; right_sign: the value has the grade's sign; positive: the grade is above 0."""


def pairs(grades: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the better and of the worse response of each pair, both (n,)."""
    together = groups[:, None] == groups[None, :]
    better, worse = (together & (grades[:, None] > grades[None, :])).nonzero().unbind(1)
    return better, worse


def bradley_terry(
    values: Tensor, grades: Tensor, groups: Tensor, *, margin: float = 0.0, centring: float = 0.0
) -> Tensor:
    """Minus the log-probability that the better response of a pair wins; the mean over the pairs of a group.

    loss = -log sigmoid(r_w - r_l - margin * (g_w - g_l)) + centring * (r_w + r_l)^2

    Bradley and Terry 1952; all pairs of K ranked responses as in Ouyang et al. 2022 (https://arxiv.org/abs/2203.02155), eq. 1;
    the margin as in Touvron et al. 2023 (https://arxiv.org/abs/2307.09288), eq. 2, where it is a number of each pair: here the
    difference of its grades, times `margin`. Centring as in Eisenstein et al. 2023 (https://arxiv.org/abs/2312.09244), section 2: a sum
    that preferences leave free is kept near 0.
    """
    better, worse = pairs(grades, groups)
    apart = values[better] - values[worse]
    if margin:
        apart = apart - margin * (grades[better] - grades[worse]).to(values.dtype)
    loss = -logsigmoid(apart)
    if centring:
        loss = loss + centring * (values[better] + values[worse]).square()
    return group_mean(loss, better, groups)


bradley_terry.compares_responses = True  # type: ignore[attr-defined]
bradley_terry.ranges = {"margin": NOT_NEGATIVE, "centring": NOT_NEGATIVE}  # type: ignore[attr-defined]


def regression(values: Tensor, grades: Tensor, groups: Tensor) -> Tensor:
    """The squared distance from the grade; the mean over the graded responses of a group.

    loss = (r - g)^2
    """
    graded = (~grades.isnan()).nonzero()[:, 0]
    return group_mean((values[graded] - grades[graded].to(values.dtype)).square(), graded, groups)


def signs(values: Tensor, grades: Tensor, groups: Tensor) -> Tensor:
    """Minus the log-probability of the grade's sign, for the two responses of a pair together, so that 0 becomes the border.

    loss = -log sigmoid(sign(g_1) r_1) - log sigmoid(sign(g_2) r_2)

    The second part of the cost model's loss, Dai et al. 2023 (https://arxiv.org/abs/2310.12773), section 3.2, where a cost above 0 is
    unsafe; `bradley_terry` is the first. Of K responses it is twice their mean. A grade of 0 has no sign.
    """
    signed = (grades.nan_to_num() != 0).nonzero()[:, 0]
    sign = grades[signed].sign().to(values.dtype)
    return group_mean(-2 * logsigmoid(sign * values[signed]), signed, groups)


def group_mean(losses: Tensor, members: Tensor, groups: Tensor) -> Tensor:
    """(S,): for each response the mean of the `losses` (n,) in its group, 0 where there are none.

    `members` (n,): a response of the group that each loss belongs to.
    """
    names, inverse = groups.unique(return_inverse=True)
    where = inverse[members]
    total = losses.new_zeros(names.numel()).index_add(0, where, losses)
    count = losses.new_zeros(names.numel()).index_add(0, where, torch.ones_like(losses))
    return (total / count.clamp(min=1))[inverse]


def count_pairs(values: Tensor, grades: Tensor, groups: Tensor, lengths: Tensor) -> Tensor:
    """(len(COUNTS),) float64: how many pairs there are, how many are ordered rightly, and what their lengths alone would say.

    Counts of several calls, or of several ranks, may be added. `lengths` (S,): tokens of each response.
    """
    better, worse = pairs(grades, groups)
    apart = values[better] - values[worse]
    right = (apart > 0).double() + 0.5 * (apart == 0).double()
    difference = lengths[better] - lengths[worse]
    signed = grades.nan_to_num() != 0
    right_sign = signed & (values.sign() == grades.sign().to(values.dtype))
    found = [
        torch.ones_like(right), right, apart == 0, difference > 0, difference == 0, right * (difference > 0),
        right * (difference < 0), signed, right_sign, signed & (grades > 0),
    ]  # fmt: skip
    return torch.stack([one.double().sum() for one in found])


def measures(counts: Tensor) -> Mapping[str, float]:
    """Shares from the `counts` of all pairs; those that have nothing to count are left out.

    accuracy, with a tie as half right; tied; longer_wins and shorter_wins: the accuracy of these rules, equal lengths being
    half right; accuracy_longer and accuracy_shorter: the model's where the better response is the longer, the shorter one;
    accuracy_balanced: the mean of these two, which no rule of lengths can raise above one half; sign_accuracy, and sign_base_rate:
    what one would get by always saying the more frequent sign.
    """
    n = dict(zip(COUNTS, counts.tolist(), strict=True))
    found = {"pairs": n["pairs"]}
    if n["pairs"]:
        longer = (n["longer"] + 0.5 * n["same_length"]) / n["pairs"]
        found |= {"accuracy": n["right"] / n["pairs"], "tied": n["tied"] / n["pairs"]}
        found |= {"longer_wins": longer, "shorter_wins": 1 - longer}
    shorter = n["pairs"] - n["longer"] - n["same_length"]
    if n["longer"]:
        found["accuracy_longer"] = n["right_longer"] / n["longer"]
    if shorter:
        found["accuracy_shorter"] = n["right_shorter"] / shorter
    if n["longer"] and shorter:
        found["accuracy_balanced"] = (found["accuracy_longer"] + found["accuracy_shorter"]) / 2
    if n["signed"]:
        share = n["positive"] / n["signed"]
        found |= {"sign_accuracy": n["right_sign"] / n["signed"], "sign_base_rate": max(share, 1 - share)}
    return found


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {"bradley_terry": bradley_terry, "regression": regression}
