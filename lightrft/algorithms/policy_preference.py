"""Losses that teach a policy which of several responses is better, without sampling and without a reward model.

Each has the signature of the losses of a reward model (algorithms/preference.py): the value of a response (S,), its grade, its group.
The value is made of log-probs by `response_values`; what a loss asks for is an attribute of it:

    compares_responses   it learns from nothing but differences of grades; without: from each graded response by itself
    averages             the value is a mean over the response's tokens, not their sum
    needs_reference      the value is log pi - log pi_ref (True unless it says otherwise), not log pi
    needs_divergence     it takes `divergence`, the distance from the reference that a step measures before its update
    weighs_kinds         it takes `desirable_weight` and `undesirable_weight`, by default the inverse of the counts of the two kinds
    ranges               option -> the numbers that it may be (config/ranges.py)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from lightrft.algorithms.preference import PreferenceLoss, group_mean, pairs
from lightrft.algorithms.segments import segment_mean, segment_sum
from lightrft.config.ranges import NOT_NEGATIVE, POSITIVE, Range
from lightrft.types import Batch

CERTAIN = -1e-7
"""Highest mean log-prob whose odds are computed: those of a certainty are infinite."""


def response_values(logprobs: Tensor, batch: Batch, *, average: bool, reference: bool) -> Tensor:
    """(S,): the sum, or with `average` the mean, over the tokens that the policy chose of a response, of log pi, or with `reference` of
    log pi - log pi_ref."""
    if reference:
        assert batch.ref is not None
        logprobs = logprobs - batch.ref.to(logprobs.dtype)
    if average:
        return segment_mean(logprobs, batch.segments, batch.num_sequences, mask=batch.mask)
    return segment_sum(torch.where(batch.mask, logprobs, 0.0), batch.segments, batch.num_sequences)


def better_and_worse(grades: Tensor, groups: Tensor, *, compares: bool) -> tuple[Tensor, Tensor]:
    """Places of what should rise and of what should fall, both (n,): the sides of each pair where a loss compares, else the responses
    with a grade above 0 and those with another."""
    if compares:
        return pairs(grades, groups)
    return (grades > 0).nonzero()[:, 0], (grades <= 0).nonzero()[:, 0]


def pair_ratios(values: Tensor, better: Tensor, worse: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Sum and number of what is measured of pairs: whether the better response has the higher value, a tie counting half, and by how much."""
    apart = values[better] - values[worse]
    right = (apart > 0).double() + 0.5 * (apart == 0)
    return {"pairs/accuracy": sum_and_number(right), "pairs/margin": sum_and_number(apart)}


def sum_and_number(values: Tensor) -> tuple[Tensor, Tensor]:
    """What the log divides over a whole update."""
    return values.sum(), torch.tensor(float(values.numel()), device=values.device)


def dpo(
    values: Tensor, grades: Tensor, groups: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """Minus the log-probability that the better response of a pair wins, the reward being beta times the log-ratio to the reference.

    loss = -(1 - e) log sigmoid(h) - e log sigmoid(-h), with h = beta * (D_w - D_l) and e = label_smoothing

    Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290), eq. 7; with e, the probability that a label is wrong, the conservative
    DPO of Mitchell 2023 (https://ericmitchell.ai/cdpo.pdf), eq. 3.
    """
    better, worse = pairs(grades, groups)
    apart = beta * (values[better] - values[worse])
    loss = -(1 - label_smoothing) * logsigmoid(apart) - label_smoothing * logsigmoid(-apart)
    return group_mean(loss, better, groups)


def robust(
    values: Tensor, grades: Tensor, groups: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """Unbiased DPO where a share of the labels is wrong: its mean over wrong labels is the loss of right ones.

    loss = (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e), with h and e as in dpo, e below one half

    Chowdhury et al. 2024 (https://arxiv.org/abs/2403.00409), eq. 12.
    """
    better, worse = pairs(grades, groups)
    apart = beta * (values[better] - values[worse])
    loss = -(1 - label_smoothing) * logsigmoid(apart) + label_smoothing * logsigmoid(-apart)
    return group_mean(loss / (1 - 2 * label_smoothing), better, groups)


def ipo(values: Tensor, grades: Tensor, groups: Tensor, *, beta: float = 0.1) -> Tensor:
    """The squared distance of the difference of log-ratios from a fixed margin, so that certain labels do not drive it to infinity.

    loss = (D_w / n_w - D_l / n_l - 1 / (2 beta))^2

    Azar et al. 2023 (https://arxiv.org/abs/2310.12036), eq. 17; by length, as its authors say (and TRL does; OpenRLHF sums).
    """
    better, worse = pairs(grades, groups)
    return group_mean((values[better] - values[worse] - 1 / (2 * beta)).square(), better, groups)


def hinge(values: Tensor, grades: Tensor, groups: Tensor, *, beta: float = 0.1) -> Tensor:
    """What a pair lacks to a margin of one; a pair that has it teaches nothing.

    loss = max(0, 1 - beta * (D_w - D_l))

    Zhao et al. 2023 (https://arxiv.org/abs/2305.10425), eq. 2, on log-ratios as in Liu et al. 2023 (https://arxiv.org/abs/2309.06657).
    """
    better, worse = pairs(grades, groups)
    return group_mean(relu(1 - beta * (values[better] - values[worse])), better, groups)


def simpo(values: Tensor, grades: Tensor, groups: Tensor, *, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    """DPO on mean log-probs, without a reference and with a margin.

    loss = -log sigmoid(beta * (L_w / n_w - L_l / n_l) - gamma)

    Meng et al. 2024 (https://arxiv.org/abs/2405.14734), eq. 6.
    """
    better, worse = pairs(grades, groups)
    return group_mean(-logsigmoid(beta * (values[better] - values[worse]) - gamma), better, groups)


def orpo(values: Tensor, grades: Tensor, groups: Tensor, *, beta: float = 0.1) -> Tensor:
    """Supervised fine-tuning on the better response, and the odds of the two apart, without a reference.

    loss = -L_w / n_w - beta * log sigmoid(o(L_w / n_w) - o(L_l / n_l)), with o(x) = x - log(1 - e^x)

    Hong et al. 2024 (https://arxiv.org/abs/2403.07691), eq. 6 and 7, where beta is called lambda.
    """
    better, worse = pairs(grades, groups)
    below = values.clamp(max=CERTAIN)
    odds = below - torch.log(-torch.expm1(below))
    return group_mean(-values[better] - beta * logsigmoid(odds[better] - odds[worse]), better, groups)


def kto(
    values: Tensor,
    grades: Tensor,
    groups: Tensor,
    divergence: Tensor | float = 0.0,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Each response by itself: a desirable one (grade above 0) is to rise above the divergence from the reference, another to fall below.

    loss = w_d (1 - sigmoid(beta * (D - z0))) if desirable, else w_u (1 - sigmoid(beta * (z0 - D)))

    Ethayarajh et al. 2024 (https://arxiv.org/abs/2402.01306), eq. 7 and 8. z0 is `divergence`, () or (S,), without gradient: of the
    whole step and all ranks, not of a micro-batch.
    """
    graded = (~grades.isnan()).nonzero()[:, 0]
    good = grades[graded] > 0
    above = beta * (values - divergence)[graded]
    weight = torch.where(good, desirable_weight, undesirable_weight).to(values.dtype)
    return group_mean(weight * torch.sigmoid(torch.where(good, -above, above)), graded, groups)


def chosen_nll(
    means: Tensor, grades: Tensor, groups: Tensor, *, compares: bool, coefficient: float
) -> Tensor:
    """(S,): `coefficient` times minus the mean log-prob of a token of the better responses, which other losses may lower.

    Pang et al. 2024 (https://arxiv.org/abs/2404.19733), eq. 1 (RPO). `means` (S,): mean log-prob of a token of each response. Of a
    group the mean over its pairs, or over its desirable responses.
    """
    better, _ = better_and_worse(grades, groups, compares=compares)
    return -coefficient * group_mean(means[better], better, groups)


def inverse_counts(desirable: int, undesirable: int) -> tuple[float, float]:
    """Weights of the two kinds of responses that make both weigh the same together, and a response 1 on average."""
    total = desirable + undesirable
    return tuple(total / (2 * n) if 0 < n < total else 1.0 for n in (desirable, undesirable))  # type: ignore[return-value]


def marked(function: PreferenceLoss, **attributes: Any) -> PreferenceLoss:
    """The loss with attributes that say what it asks for."""
    for name, value in attributes.items():
        setattr(function, name, value)
    return function


BETA = {"beta": POSITIVE}
POLICY_LOSSES: dict[str, PreferenceLoss] = {
    "dpo": marked(dpo, compares_responses=True, ranges={**BETA, "label_smoothing": Range(0, 0.5)}),
    "robust": marked(
        robust, compares_responses=True, ranges={**BETA, "label_smoothing": Range(0, 0.5, without_high=True)}
    ),
    "ipo": marked(ipo, compares_responses=True, averages=True, ranges=BETA),
    "hinge": marked(hinge, compares_responses=True, ranges=BETA),
    "simpo": marked(
        simpo,
        compares_responses=True,
        averages=True,
        needs_reference=False,
        ranges={**BETA, "gamma": NOT_NEGATIVE},
    ),
    "orpo": marked(
        orpo, compares_responses=True, averages=True, needs_reference=False, ranges={"beta": NOT_NEGATIVE}
    ),
    "kto": marked(
        kto,
        needs_divergence=True,
        weighs_kinds=True,
        ranges={**BETA, "desirable_weight": NOT_NEGATIVE, "undesirable_weight": NOT_NEGATIVE},
    ),
}
