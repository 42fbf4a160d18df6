import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightrft.trainer.estimates import (
    Estimate,
    majority_at_k,
    majority_chance,
    mean_estimate,
    pass_at_k,
    pass_chance,
)
from lightrft.utils.intervals import wilson


def slow_pass(n: int, c: int, k: int) -> float:
    subsets = list(combinations(range(n), k))
    return sum(any(i < c for i in subset) for subset in subsets) / len(subsets)


def slow_majority(votes, k: int) -> float:
    values = {}
    for answer, _ in votes:
        marks = [right for other, right in votes if other == answer]
        values[answer] = Fraction(sum(marks), len(marks))
    total, subsets = Fraction(0), list(combinations(votes, k))
    for subset in subsets:
        counts = Counter(answer for answer, _ in subset if answer is not None)
        winners = [answer for answer, count in counts.items() if count == max(counts.values())]
        if winners:
            total += sum(values[answer] for answer in winners) / len(winners)
    return float(total / len(subsets))


@given(st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(data):
    n = data.draw(st.integers(1, 9))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    assert pass_chance(n, c, k) == pytest.approx(slow_pass(n, c, k), abs=1e-14)


def test_pass_at_1_is_the_share_of_right_answers():
    assert pass_chance(8, 3, 1) == pytest.approx(3 / 8, abs=1e-15)


def test_pass_at_2_of_two_right_among_four_is_five_sixths():
    assert pass_chance(4, 2, 2) == pytest.approx(5 / 6, abs=1e-15)


def test_pass_at_k_of_many_samples_neither_overflows_nor_leaves_its_range():
    assert pass_chance(10_000, 0, 5_000) == 0.0
    assert pass_chance(10_000, 1, 5_000) == 0.5
    assert pass_chance(10_000, 10_000, 1) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 0), (4, 2, 5), (4, 5, 1), (4, -1, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match=rf"k={k}, samples={n}, right={c}"):
        pass_chance(n, c, k)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.booleans()), min_size=1, max_size=8),
    st.data(),
)
def test_maj_at_k_is_the_mean_over_all_subsets(votes, data):
    votes = [(answer, right and answer is not None) for answer, right in votes]
    k = data.draw(st.integers(1, len(votes)))
    assert majority_chance(votes, k) == pytest.approx(slow_majority(votes, k), abs=1e-12)


def test_maj_at_all_samples_is_the_plurality():
    votes = [("7", True)] * 3 + [("8", False)] * 2 + [("9", False)] * 2
    assert majority_chance(votes, 7) == 1.0


def test_maj_at_1_is_the_share_of_right_answers():
    assert majority_chance([("7", True)] * 3 + [("8", False)] * 5, 1) == pytest.approx(3 / 8)


def test_a_tie_of_two_answers_counts_half():
    assert majority_chance([("7", True), ("8", False)], 2) == pytest.approx(0.5)


def test_samples_without_an_answer_do_not_vote():
    assert majority_chance([("7", True), (None, False), (None, False)], 3) == 1.0
    assert majority_chance([(None, False)] * 3, 2) == 0.0


def test_an_answer_judged_in_two_ways_counts_by_its_mean():
    assert majority_chance([("7", True), ("7", False)], 2) == pytest.approx(0.5)


def test_maj_at_k_of_many_samples_is_a_probability():
    votes = [(str(i % 23), i % 23 == 0) for i in range(256)]
    assert 1 / 23 < majority_chance(votes, 64) < 1
    assert majority_chance([("7", True)] * 200 + [("8", False)] * 100, 299) == pytest.approx(1.0)


def test_a_majority_of_more_samples_than_there_are_is_refused():
    with pytest.raises(ValueError, match="k=3, samples=2"):
        majority_chance([("a", True)] * 2, 3)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilsons_interval_has_the_published_values(successes, n, low, high):
    assert wilson(successes / n, n) == pytest.approx((low, high), abs=1e-4)


def test_marks_of_0_and_1_get_wilsons_interval():
    assert mean_estimate([1.0] * 10 + [0.0] * 10) == Estimate(0.5, *wilson(0.5, 20))
    assert mean_estimate([True, False]).mean == 0.5


def test_other_marks_get_an_interval_about_two_standard_errors_wide_on_each_side():
    values = [i / 400 for i in range(401)]
    estimate = mean_estimate(values)
    error = 1.96 * math.sqrt(1 / 12 / 401)
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.high - 0.5 == pytest.approx(error, rel=0.1)
    assert 0.5 - estimate.low == pytest.approx(error, rel=0.1)


def test_the_interval_depends_on_its_seed_alone():
    values = [math.sqrt(i) for i in range(30)]
    assert mean_estimate(values, seed=1) == mean_estimate(values, seed=1)
    assert mean_estimate(values, seed=1) != mean_estimate(values, seed=2)


def test_equal_marks_have_an_interval_without_width():
    assert mean_estimate([0.25] * 9) == Estimate(0.25, 0.25, 0.25)


def test_no_questions_give_no_numbers():
    for estimate in (mean_estimate([]), pass_at_k([], 1), majority_at_k([], 1)):
        assert all(math.isnan(x) for x in (estimate.mean, estimate.low, estimate.high))


def test_questions_are_averaged():
    assert pass_at_k([(4, 2), (4, 0)], 2).mean == pytest.approx(5 / 12)
    assert majority_at_k([[("7", True)], [("8", False)], [("9", False)]], 1).mean == pytest.approx(1 / 3)
