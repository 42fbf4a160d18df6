"""What holds for every loss of comparisons, one's own by import path too."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.preference import PREFERENCE_LOSSES, bradley_terry, group_mean, pairs, signs
from tests.properties.comparisons import (
    assert_equal_grades_have_no_loss_and_no_gradient,
    assert_order_and_company_change_nothing,
    columns,
)


def mine(values, grades, groups, *, power=2.0):
    """A loss as a user writes it."""
    better, worse = pairs(grades, groups)
    return group_mean((1 - values[better] + values[worse]).abs() ** power, better, groups)


LOSSES = {**PREFERENCE_LOSSES, "signs": signs, "mine": mine}
numbers = st.floats(-5, 5, width=32)
grades = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 2.0, math.nan])
groups = st.lists(st.lists(st.tuples(numbers, grades), min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize("name", LOSSES)
@given(drawn=groups, seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_order_and_company_change_nothing(name, drawn, seed):
    assert_order_and_company_change_nothing(LOSSES[name], drawn, seed)


@given(drawn=groups, shift=numbers)
@settings(max_examples=60, deadline=None)
def test_a_constant_added_to_all_values_of_a_group_changes_no_preference(drawn, shift):
    values, right, names = columns(drawn)
    found = bradley_terry(values + shift, right, names)
    torch.testing.assert_close(found, bradley_terry(values, right, names), atol=1e-9, rtol=0)


@given(one=numbers, other=numbers, shift=numbers)
@settings(max_examples=60, deadline=None)
def test_a_constant_added_to_all_values_changes_centring_by_a_known_amount(one, other, shift):
    values, right = torch.tensor([one, other], dtype=torch.float64), torch.tensor([1.0, 0.0])
    names, weight = torch.zeros(2, dtype=torch.int64), 0.25
    before, after = (bradley_terry(v, right, names, centring=weight) for v in (values, values + shift))
    change = weight * ((one + other + 2 * shift) ** 2 - (one + other) ** 2)
    torch.testing.assert_close(after - before, torch.full_like(before, change), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["bradley_terry", "mine"])
@given(values=st.lists(numbers, min_size=1, max_size=4), grade=grades)
@settings(max_examples=60, deadline=None)
def test_equal_grades_have_no_loss_and_no_gradient(name, values, grade):
    assert_equal_grades_have_no_loss_and_no_gradient(LOSSES[name], values, grade)


@pytest.mark.parametrize("name", LOSSES)
@given(drawn=groups)
@settings(max_examples=60, deadline=None)
def test_what_is_not_graded_has_no_gradient_and_breaks_none(name, drawn):
    values, right, names = columns(drawn)
    leaf = values.requires_grad_()
    LOSSES[name](leaf, right, names).sum().backward()
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[right.isnan()].any()


@given(one=numbers, other=numbers)
@settings(max_examples=60, deadline=None)
def test_swapping_chosen_and_rejected_negates_the_difference(one, other):
    values, names = torch.tensor([one, other], dtype=torch.float64), torch.tensor([3, 3])
    p = torch.exp(-bradley_terry(values, torch.tensor([1.0, 0.0]), names))
    q = torch.exp(-bradley_terry(values, torch.tensor([0.0, 1.0]), names))
    torch.testing.assert_close(p + q, torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)
