"""Losses that teach a policy what is better, against plain Python written from the papers."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
import torch

from lightrft.algorithms.policy_preference import (
    POLICY_LOSSES,
    chosen_nll,
    dpo,
    hinge,
    inverse_counts,
    ipo,
    kto,
    response_values,
    robust,
)
from lightrft.testing import keep_double
from lightrft.types import Batch


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > -30 else x - math.log1p(math.exp(x))


def sigmoid(x):
    return math.exp(log_sigmoid(x))


def log_odds(x):
    return x - math.log1p(-math.exp(x))


PAIRS = {
    "dpo": lambda w, r, b, e: -(1 - e) * log_sigmoid(b * (w - r)) - e * log_sigmoid(b * (r - w)),
    "robust": lambda w, r, b, e: (
        (-(1 - e) * log_sigmoid(b * (w - r)) + e * log_sigmoid(b * (r - w))) / (1 - 2 * e)
    ),
    "ipo": lambda w, r, b, _: (w - r - 1 / (2 * b)) ** 2,
    "hinge": lambda w, r, b, _: max(0.0, 1 - b * (w - r)),
    "simpo": lambda w, r, b, g: -log_sigmoid(b * (w - r) - g),
    "orpo": lambda w, r, b, _: -w - b * log_sigmoid(log_odds(w) - log_odds(r)),
}
OPTION = {"dpo": "label_smoothing", "robust": "label_smoothing", "simpo": "gamma"}


class Made:
    """Responses of uneven lengths with random log-probs, graded, in groups of two to four; a token in three is not the policy's."""

    def __init__(self, seed):
        rnd = random.Random(seed)
        self.groups = [[rnd.choice([0.0, 1.0, 2.0]) for _ in range(rnd.randint(2, 4))] for _ in range(4)]
        lengths = [rnd.randint(2, 7) for group in self.groups for _ in group]
        self.masks = [[place == 0 or rnd.random() < 0.67 for place in range(n)] for n in lengths]
        self.policy, self.ref = ([[-3 * rnd.random() for _ in range(n)] for n in lengths] for _ in range(2))

    def batch(self):
        lengths = torch.tensor([len(row) for row in self.policy])
        zeros = torch.zeros(int(lengths.sum()))
        return Batch(
            segments=torch.repeat_interleave(torch.arange(len(lengths)), lengths),
            groups=torch.tensor([place for place, group in enumerate(self.groups) for _ in group]),
            mask=torch.tensor([x for row in self.masks for x in row]),
            scores=torch.zeros(len(lengths)),
            weights=zeros,
            behavior=zeros,
            ref=torch.tensor([x for row in self.ref for x in row], dtype=torch.float64),
        )

    def logprobs(self):
        return torch.tensor([x for row in self.policy for x in row], dtype=torch.float64)

    def grades(self):
        return torch.tensor([grade for group in self.groups for grade in group], dtype=torch.float64)

    def values(self, average, reference):
        """By plain loops, in groups."""
        flat = []
        for policy, ref, mask in zip(self.policy, self.ref, self.masks, strict=True):
            kept = [p - r * reference for p, r, m in zip(policy, ref, mask, strict=True) if m]
            flat.append(math.fsum(kept) / (len(kept) if average else 1))
        rest = iter(flat)
        return [[(next(rest), grade) for grade in group] for group in self.groups]


def mean_of_pairs(groups, loss):
    """Mean over the pairs of each group, then over groups."""
    means = []
    for group in groups:
        losses = [
            loss(*(v for v, _ in sorted(two, key=lambda x: -x[1])))
            for two in combinations(group, 2)
            if two[0][1] != two[1][1]
        ]
        means.append(sum(losses) / len(losses) if losses else 0.0)
    return sum(means) / len(means)


def mean_of_groups(loss, names):
    counts = torch.stack([(names == n).sum() for n in names])
    return float((loss / counts).sum() / names.unique().numel())


def found(name, made, **options):
    function, batch = POLICY_LOSSES[name], made.batch()
    values = response_values(
        made.logprobs(),
        batch,
        average=getattr(function, "averages", False),
        reference=getattr(function, "needs_reference", True),
    )
    return mean_of_groups(function(values, made.grades(), batch.groups, **options), batch.groups)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("name", PAIRS)
def test_a_loss_of_pairs_is_the_formula(name, beta, seed):
    made, number = Made(seed), 0.2 if name in OPTION else 0.0
    groups = made.values(average=name in ("ipo", "simpo", "orpo"), reference=name not in ("simpo", "orpo"))
    right = mean_of_pairs(groups, lambda w, r: PAIRS[name](w, r, beta, number))
    options = {OPTION[name]: number} if number else {}
    assert found(name, made, beta=beta, **options) == pytest.approx(right, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_kto_is_the_formula(seed):
    made, z = Made(seed), 0.3
    means = [
        sum(
            1.5 * (1 - sigmoid(0.2 * (d - z))) if grade > 0 else 0.5 * (1 - sigmoid(0.2 * (z - d)))
            for d, grade in group
        )
        / len(group)
        for group in made.values(average=False, reference=True)
    ]
    options = {"beta": 0.2, "desirable_weight": 1.5, "undesirable_weight": 0.5, "divergence": z}
    assert found("kto", made, **options) == pytest.approx(sum(means) / len(means), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_nll_of_the_better_responses_is_a_mean_by_length(seed):
    made = Made(seed)
    groups, batch = made.values(average=True, reference=False), made.batch()
    means = response_values(made.logprobs(), batch, average=True, reference=False)
    loss = chosen_nll(means, made.grades(), batch.groups, compares=True, coefficient=0.7)
    right = mean_of_pairs(groups, lambda w, _: -0.7 * w)
    assert mean_of_groups(loss, batch.groups) == pytest.approx(right, abs=1e-12)


def test_the_first_losses_are_those_of_the_papers():
    zeros, grades, groups = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([5, 5])
    with keep_double():
        zeros = zeros.double()
        for loss, right in (
            (dpo(zeros, grades, groups, beta=0.3, label_smoothing=0.2), math.log(2)),
            (robust(zeros, grades, groups), math.log(2)),
            (ipo(zeros, grades, groups, beta=0.2), 1 / (4 * 0.2**2)),
            (hinge(zeros, grades, groups), 1.0),
            (kto(zeros, grades, groups), 0.5),
        ):
            assert loss.tolist() == pytest.approx([right, right], abs=1e-12)


def test_a_difference_of_two_thousand_is_a_number_and_a_certainty_has_finite_odds():
    values = torch.tensor([-20_000.0, 20_000.0], dtype=torch.float64)
    grades, groups = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    assert dpo(values, grades, groups).tolist() == [4000.0, 4000.0]
    sure = torch.tensor([0.0, -1.0], requires_grad=True)
    loss = POLICY_LOSSES["orpo"](sure, grades, groups)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert sure.grad.isfinite().all()


def test_the_kinds_weigh_the_same_together_by_the_inverse_of_their_counts():
    assert inverse_counts(30, 10) == (40 / 60, 2.0)
    assert inverse_counts(5, 0) == (1.0, 1.0)
