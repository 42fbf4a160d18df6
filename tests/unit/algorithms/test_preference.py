import math

import pytest
import torch

from lightrft.algorithms.preference import count_pairs, measures, pairs

NAN = math.nan


def test_pairs_are_responses_of_one_group_with_different_grades():
    grades = torch.tensor([1.0, 0.0, 2.0, 2.0, NAN, 3.0, 1.0])
    groups = torch.tensor([4, 4, 9, 9, 9, 9, 5])
    better, worse = pairs(grades, groups)
    assert list(zip(better.tolist(), worse.tolist(), strict=True)) == [(0, 1), (5, 2), (5, 3)]


def test_accuracy_ties_and_rules_of_length_can_be_counted_by_hand():
    """Four pairs: right and longer, wrong and longer, a tie and shorter, right with the same length."""
    values = torch.tensor([2.0, 1.0, 0.0, 1.0, 3.0, 3.0, -1.0, -2.0])
    grades = torch.tensor([1.0, 0.0] * 4)
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    lengths = torch.tensor([5, 4, 9, 2, 1, 7, 3, 3])
    found = measures(count_pairs(values, grades, groups, lengths))
    assert found == {
        "pairs": 4.0,
        "accuracy": 2.5 / 4,
        "tied": 1 / 4,
        "longer_wins": 2.5 / 4,
        "shorter_wins": 1.5 / 4,
        "accuracy_longer": 1 / 2,
        "accuracy_shorter": 1 / 2,
        "accuracy_balanced": 1 / 2,
        "sign_accuracy": 2 / 4,
        "sign_base_rate": 1.0,
    }


def test_counts_of_parts_add_up_and_nothing_counted_is_left_out():
    draw = torch.Generator().manual_seed(0)
    values, grades = torch.randn(12, generator=draw), torch.randint(-1, 2, (12,), generator=draw).float()
    groups, lengths = torch.arange(12) // 3, torch.randint(1, 9, (12,), generator=draw)
    everything = (values, grades, groups, lengths)
    parts = [count_pairs(*(c[part] for c in everything)) for part in (slice(0, 6), slice(6, 12))]
    assert sum(parts).tolist() == count_pairs(*everything).tolist()
    nothing = count_pairs(*(c[:0] for c in everything))
    assert measures(nothing) == {"pairs": 0.0}


@pytest.mark.parametrize("rule", ["longer", "shorter"])
def test_a_rule_of_length_has_a_balanced_accuracy_of_a_half(rule):
    lengths = torch.tensor([5, 1, 6, 2, 7, 3, 1, 4])
    values = lengths.double() * (1 if rule == "longer" else -1)
    found = measures(count_pairs(values, torch.tensor([1.0, 0.0] * 4), torch.arange(8) // 2, lengths))
    assert found["accuracy"] == found[f"{rule}_wins"]
    assert found["accuracy_balanced"] == 0.5
