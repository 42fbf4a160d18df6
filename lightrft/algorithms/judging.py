"""Measures of a reward on comparisons: how often it prefers the better response, and what lengths alone would have got.

Everything here speaks of one reward: `values` (S,) are its numbers, NaN where it gave none, `grades` (S,) what is right, `groups` (S,)
which responses belong to one row, `lengths` (S,) how long each is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightrft.algorithms.preference import COUNTS, count_pairs, measures, pairs

AT_ONCE = 512
"""Responses whose pairs are looked for together; rows are never divided."""


class Tied(NamedTuple):
    """One row of RewardBench 2's subset Ties: numbers of its right responses and of the others."""

    right: Sequence[float]
    wrong: Sequence[float]


class Rated(NamedTuple):
    """One response: what the reward says, what is right, and how long it is."""

    value: float
    grade: float
    length: float


class Choice(NamedTuple):
    """Grades of the responses of one row that are chosen by a reward, and by rules that need none."""

    first: float
    """Grade of the one that the reward puts first; the mean of those that share the place, here and below."""
    mean: float
    """Mean of all: what choosing by chance gives."""
    best: float
    """Grade of the best one, which no choice exceeds."""
    longest: float
    shortest: float


def judged(values: Tensor, grades: Tensor, groups: Tensor, lengths: Tensor) -> dict[str, float]:
    """All measures of a reward; those that have nothing to count are left out.

    Those of `preference.measures`; brier: the mean over pairs of (1 - sigmoid(r_w - r_l))^2, 0.25 for a reward that says nothing;
    length_correlation: Pearson's, of the number with the length; best_of_k: the share of rows with one best response of three or more
    that it puts first, `1 / n` where n share the first place, as RewardBench 2 counts, best_of_k_rows of them, and best_of_k_chance;
    unjudged: responses without a number.
    """
    known = ~values.isnan()
    found = {"unjudged": float((~known).sum())}
    grades = torch.where(known, grades, math.nan)
    counts = torch.zeros(len(COUNTS), dtype=torch.float64)
    brier = torch.zeros((), dtype=torch.float64)
    for part in _parts(groups):
        here = (values[part], grades[part], groups[part])
        counts += count_pairs(*here, lengths[part])
        better, worse = pairs(here[1], here[2])
        brier += (1 - torch.sigmoid(here[0][better] - here[0][worse])).square().sum()
    found |= measures(counts)
    if found["pairs"]:
        found["brier"] = float(brier) / found["pairs"]
    correlation = _correlation(values[known], lengths[known].double())
    if correlation is not None:
        found["length_correlation"] = correlation
    return found | _best_of(_rows(values, grades, groups, lengths))


def as_good_as_length(found: Mapping[str, float], low: float) -> bool:
    """Whether a rule of length may be as good as the reward: its interval begins at `low`, not above the better of the two rules."""
    return low <= max(found["longer_wins"], found["shorter_wins"])


def first_place(values: Sequence[float], best: int) -> float:
    """1 if the response at `best` has the highest number, a share of 1 if it shares the first place, else 0."""
    top = max(values)
    return 1 / sum(value == top for value in values) if values[best] == top else 0.0


def ties_score(rows: Mapping[str, Tied]) -> float:
    """RewardBench 2's score of its subset Ties, by id (`ref:N`, `tied:N`).

    Accuracy (all right responses above all others) on both kinds counts 0.3 each; that the right ones lie closer together than they
    lie to the others 0.2, the same with the margin of the reference prompt 0.2, and tanh(margin / spread - 1) 0.01, of rows whose right
    responses do not all get the same. Malik et al. 2025 (https://arxiv.org/abs/2506.01937), appendix; `process_single_model` of the
    package rewardbench 0.1.4, whose mean of no rows is NaN, and 0 here.
    """
    stats: dict[str, dict[str, tuple[float | None, float]]] = {"ref": {}, "tied": {}}
    for name, row in rows.items():
        kind, _, number = name.partition(":")
        stats[kind][number] = _spread_and_margin(row)
    accuracy = [_mean([margin > 0 for _, margin in kind.values()]) for kind in stats.values()]
    both = [(*stats["tied"][n], stats["ref"][n][1]) for n in stats["tied"] if n in stats["ref"]]
    known = [(spread, margin, ref) for spread, margin, ref in both if spread is not None]
    close = _mean([margin > spread for spread, margin, _ in known])
    hard = _mean([min(margin, ref) > spread for spread, margin, ref in known])
    shares = [math.tanh(min(margin, ref) / spread - 1) for spread, margin, ref in known if spread > 0]
    return 0.3 * sum(accuracy) + 0.2 * close + 0.2 * hard + 0.01 * _mean(shares)


def _spread_and_margin(row: Tied) -> tuple[float | None, float]:
    """How far the right responses are apart (None: there are not two), and how far above the others; 0 where one side is empty."""
    if not row.right or not row.wrong:
        return None, 0.0
    spread = max(row.right) - min(row.right) if len(row.right) > 1 else None
    return spread, min(row.right) - max(row.wrong)


def _mean(values: Sequence[float]) -> float:
    """0 for none."""
    return sum(values) / len(values) if values else 0.0


def _parts(groups: Tensor) -> list[Tensor]:
    """Places of responses, whole rows together, about AT_ONCE in each."""
    order = groups.argsort(stable=True)
    _, sizes = groups[order].unique_consecutive(return_counts=True)
    ends = sizes.cumsum(0).tolist()
    cuts, start = [], 0
    for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
        if following - start > AT_ONCE:
            cuts.append(order[start:end])
            start = end
    return cuts


def _correlation(one: Tensor, other: Tensor) -> float | None:
    """Pearson's; None where one of them is the same everywhere."""
    if one.numel() < 2 or bool((one == one[0]).all()) or bool((other == other[0]).all()):
        return None
    return float(torch.corrcoef(torch.stack([one.double(), other]))[0, 1])


def _rows(values: Tensor, grades: Tensor, groups: Tensor, lengths: Tensor) -> list[list[Rated]]:
    """The rows with three responses or more, each of which has a number and a grade."""
    by_row: dict[int, list[Rated]] = {}
    columns = (column.tolist() for column in (values, grades, lengths))
    for group, value, grade, length in zip(groups.tolist(), *columns, strict=True):
        by_row.setdefault(group, []).append(Rated(value, grade, length))
    return [
        row
        for row in by_row.values()
        if len(row) > 2 and not any(math.isnan(one.value) or math.isnan(one.grade) for one in row)
    ]


def _best_of(rows: Sequence[Sequence[Rated]]) -> dict[str, float]:
    """The share of rows with one best response of three or more that is put first."""
    found, chance = [], []
    for row in rows:
        marks = [one.grade for one in row]
        if marks.count(max(marks)) == 1:
            found.append(first_place([one.value for one in row], marks.index(max(marks))))
            chance.append(1 / len(row))
    if not found:
        return {}
    n = len(found)
    return {"best_of_k": sum(found) / n, "best_of_k_rows": float(n), "best_of_k_chance": sum(chance) / n}


def choices(values: Tensor, grades: Tensor, groups: Tensor, lengths: Tensor) -> list[Choice]:
    """What choosing one response gives, of each row with three or more that all have a number and a grade (best-of-n sampling)."""
    return [
        Choice(
            _chosen(row, [one.value for one in row]),
            _mean([one.grade for one in row]),
            max(one.grade for one in row),
            _chosen(row, [one.length for one in row]),
            _chosen(row, [-one.length for one in row]),
        )
        for row in _rows(values, grades, groups, lengths)
    ]


def _chosen(row: Sequence[Rated], values: Sequence[float]) -> float:
    """The grade of the response with the highest value; the mean of those that share it."""
    top = max(values)
    return _mean([one.grade for one, value in zip(row, values, strict=True) if value == top])
