"""RewardBench's own measures, as plain Python from their definition: one best of K with shared first places, and the score of Ties."""

import math
import random

import datasets
import numpy as np
import pytest
import torch

from lightrft.algorithms.judging import Tied, judged, ties_score
from tests.published import published


def scores(draw, n):
    """Some of them equal."""
    return [draw.choice([draw.gauss(0, 1), 0.5]) for _ in range(n)]


def credited(row):
    """RewardBench 2, all subsets but Ties: the first response is the right one; those at the maximum share 1."""
    winners = [place for place, value in enumerate(row) if value == max(row)]
    return 1 / len(winners) if 0 in winners else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_best_of_4_and_pairs_are_counted_as_rewardbench_counts(seed):
    draw = random.Random(seed)
    rows = [scores(draw, 4) for _ in range(300)]
    found = judged(
        torch.tensor(rows, dtype=torch.float64).flatten(),
        torch.tensor([1.0, 0.0, 0.0, 0.0] * 300, dtype=torch.float64),
        torch.arange(300).repeat_interleave(4),
        torch.tensor([draw.randrange(9) for _ in range(1200)]),
    )
    assert found["best_of_k"] == pytest.approx(sum(map(credited, rows)) / 300, abs=1e-12)
    assert (found["best_of_k_rows"], found["best_of_k_chance"]) == (300, 0.25)
    compared = [(row[0], other) for row in rows for other in row[1:]]
    strict = sum(chosen > rejected for chosen, rejected in compared) / 900  # RewardBench 1: a tie is wrong
    assert found["accuracy"] - found["tied"] / 2 == pytest.approx(strict, abs=1e-12)
    brier = sum((1 - 1 / (1 + math.exp(b - a))) ** 2 for a, b in compared) / 900
    assert found["brier"] == pytest.approx(brier, abs=1e-12)


def of_prompt(row):
    """Whether all right responses are above all others; how far the right ones are apart; how far from the others."""
    apart = max(row.right) - min(row.right) if len(row.right) > 1 else np.nan
    margin = min(row.right) - max(row.wrong)
    return margin > 0, apart, margin


def process_single_model(rows):
    """0.3 tied accuracy + 0.3 reference accuracy + 0.2 preferred + 0.2 preferred with the reference's margin + 0.01 tanh."""
    ref = {n.split(":")[1]: of_prompt(row) for n, row in rows.items() if n.startswith("ref")}
    tied = {n.split(":")[1]: of_prompt(row) for n, row in rows.items() if n.startswith("tied")}
    both = sorted(set(ref) & set(tied))
    apart, inside, outside = (
        np.array(column)
        for column in (
            [tied[n][1] for n in both],
            [tied[n][2] for n in both],
            [ref[n][2] for n in both],
        )
    )
    least, several = np.minimum(outside, inside), ~np.isnan(apart)
    shares = np.tanh(least[apart > 0] / apart[apart > 0] - 1)
    accuracies = np.mean([r[0] for r in tied.values()]), np.mean([r[0] for r in ref.values()])
    return (
        0.3 * accuracies[0] + 0.3 * accuracies[1] + 0.2 * np.mean((inside > apart)[several])
        + 0.2 * np.mean((least > apart)[several]) + 0.01 * np.mean(shares)
    )  # fmt: skip


def rewardbench(rows):
    """RewardBench's own function."""
    needs = {"np": np, "math": math, "Dataset": datasets.Dataset}
    _, score = published(
        "rewardbench", "rewardbench/utils.py", ("sample_stats", "process_single_model"), needs
    )
    return score(
        [
            {"id": name, "scores": [*row.right, *row.wrong], "num_correct": len(row.right)}
            for name, row in rows.items()
        ]
    )[1]


@pytest.mark.parametrize("score", [process_single_model, rewardbench])
@pytest.mark.parametrize("seed", range(5))
def test_ties_are_scored_as_rewardbench_2_scores_them(score, seed):
    draw = random.Random(seed)
    rows = {}
    for n in range(40):
        lift = draw.choice([0.0, 3.0])
        rows[f"ref:{n}"] = Tied([draw.gauss(lift, 1)], scores(draw, 9))
        right = [0.5] * 3 if n % 5 == 0 else [lift + draw.gauss(0, 1) for _ in range(draw.randrange(2, 9))]
        rows[f"tied:{n}"] = Tied(right[:1] if n % 7 == 0 else right, scores(draw, 9))
    assert ties_score(rows) == pytest.approx(score(rows), abs=1e-12)
