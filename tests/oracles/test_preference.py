"""Losses of comparisons against plain Python written from the papers, and against TRL where it is installed."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from lightrft.algorithms.preference import bradley_terry, regression, signs

NAN = math.nan


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > -30 else x - math.log1p(math.exp(x))


def plain(kind, groups, margin=0.0, centring=0.0):
    """Mean over prompts; each a list of (value, grade)."""
    means = []
    for group in groups:
        losses = []
        if kind == "regression":
            losses = [(r - g) ** 2 for r, g in group if not math.isnan(g)]
        elif kind == "signs":
            losses = [
                -2 * log_sigmoid(math.copysign(1, g) * r) for r, g in group if not math.isnan(g) and g != 0
            ]
        else:
            for one, other in combinations(group, 2):
                if math.isnan(one[1]) or math.isnan(other[1]) or one[1] == other[1]:
                    continue
                (r_w, g_w), (r_l, g_l) = (one, other) if one[1] > other[1] else (other, one)
                losses.append(-log_sigmoid(r_w - r_l - margin * (g_w - g_l)) + centring * (r_w + r_l) ** 2)
        means.append(sum(losses) / len(losses) if losses else 0.0)
    return sum(means) / len(means)


def columns(groups):
    values = torch.tensor([r for group in groups for r, _ in group], dtype=torch.float64)
    grades = torch.tensor([g for group in groups for _, g in group], dtype=torch.float64)
    names = torch.tensor([7 * place for place, group in enumerate(groups) for _ in group])
    return values, grades, names


def mean_of_groups(loss, names):
    """As the trainer averages: each response of a group carries its loss."""
    counts = torch.stack([(names == n).sum() for n in names])
    return float((loss / counts).sum() / names.unique().numel())


def draw(seed):
    rnd = random.Random(seed)
    grades = [-1.0, 0.0, 1.0, 2.0, NAN]
    return [
        [(rnd.gauss(0, 3), rnd.choice(grades)) for _ in range(rnd.choice([1, 2, 2, 2, 5]))] for _ in range(9)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("margin", "centring"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.01), (1.0, 0.1)])
def test_bradley_terry_is_the_formula(seed, margin, centring):
    groups = draw(seed)
    values, grades, names = columns(groups)
    found = mean_of_groups(bradley_terry(values, grades, names, margin=margin, centring=centring), names)
    assert found == pytest.approx(plain("bradley_terry", groups, margin, centring), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_regression_and_signs_are_the_formulas(seed):
    groups = draw(seed)
    values, grades, names = columns(groups)
    for kind, loss in (("regression", regression), ("signs", signs)):
        found = mean_of_groups(loss(values, grades, names), names)
        assert found == pytest.approx(plain(kind, groups), abs=1e-12)


def test_a_cost_model_learns_order_and_signs_as_in_the_paper():
    """Of one pair, the unsafer first: -s(c_1 - c_2) - s(sign_1 c_1) - s(sign_2 c_2)."""
    values, grades, names = columns([[(0.7, 2.0), (-0.4, -1.0)]])
    found = bradley_terry(values, grades, names) + signs(values, grades, names)
    right = -log_sigmoid(1.1) - log_sigmoid(0.7) - log_sigmoid(0.4)
    assert found.tolist() == pytest.approx([right, right], abs=1e-12)


def test_a_difference_of_two_thousand_is_a_number():
    values, grades, names = columns([[(-1000.0, 1.0), (1000.0, 0.0)]])
    assert bradley_terry(values, grades, names).tolist() == [2000.0, 2000.0]


@pytest.mark.parametrize("centring", [None, 0.01])
def test_pairs_with_margins_and_centring_are_those_of_trl(centring):
    trainer = pytest.importorskip("trl.trainer.reward_trainer", reason="TRL is not installed").RewardTrainer
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
    rnd = random.Random(0)
    chosen, rejected = ([rnd.gauss(0, 2) for _ in range(5)] for _ in range(2))
    margins = [rnd.random() + 0.1 for _ in range(5)]
    told = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=centring),
        accelerator=accelerator,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    logits = torch.tensor(chosen + rejected, dtype=torch.float64)[:, None]
    inputs = {
        "input_ids": torch.zeros(10, 3, dtype=torch.long),
        "attention_mask": torch.ones(10, 3),
        "margin": torch.tensor(margins, dtype=torch.float64),
    }
    theirs = trainer.compute_loss(told, lambda **_: SimpleNamespace(logits=logits), inputs)
    groups = [[(c, m), (r, 0.0)] for c, r, m in zip(chosen, rejected, margins, strict=True)]
    values, grades, names = columns(groups)
    ours = mean_of_groups(bradley_terry(values, grades, names, margin=1.0, centring=centring or 0.0), names)
    assert ours == pytest.approx(float(theirs), abs=1e-12)
