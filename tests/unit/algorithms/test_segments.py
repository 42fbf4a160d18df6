import torch

from lightrft.algorithms.segments import (
    last_of_segment,
    reverse_scan,
    segment_count,
    segment_mean,
    segment_sum,
)

SEGMENTS = torch.tensor([0, 0, 2, 2, 2])  # answer 1 has no token
VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
MASK = torch.tensor([True, False, True, True, False])


def test_sums_stay_within_their_sequence_and_an_empty_one_gives_zero():
    assert segment_sum(VALUES, SEGMENTS, 4).tolist() == [3.0, 0.0, 12.0, 0.0]


def test_counts_are_of_masked_in_tokens():
    assert segment_count(MASK, SEGMENTS, 4).tolist() == [1, 0, 2, 0]


def test_means_are_over_masked_in_tokens_and_zero_without_any():
    assert segment_mean(VALUES, SEGMENTS, 4, mask=MASK).tolist() == [1.0, 0.0, 3.5, 0.0]


def test_a_nan_outside_the_mask_does_not_reach_the_mean():
    values = torch.where(MASK, VALUES, torch.nan)
    assert segment_mean(values, SEGMENTS, 3, mask=MASK).tolist() == [1.0, 0.0, 3.5]


def test_the_gradient_of_a_sum_reaches_each_token_of_its_sequence():
    values = VALUES.clone().requires_grad_()
    (segment_sum(values, SEGMENTS, 3) * torch.tensor([10.0, 20.0, 30.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [10.0, 10.0, 30.0, 30.0, 30.0]


def test_the_last_token_is_the_last_one_in_the_mask():
    assert last_of_segment(SEGMENTS, mask=MASK).tolist() == [True, False, False, True, False]


def test_a_sequence_without_masked_in_tokens_has_no_last_one():
    nothing = torch.zeros(5, dtype=torch.bool)
    assert not last_of_segment(SEGMENTS, mask=nothing).any()


def test_the_scan_adds_what_is_still_to_come_with_discount():
    assert reverse_scan(VALUES, SEGMENTS, 0.5).tolist() == [2.0, 2.0, 6.25, 6.5, 5.0]


def test_the_scan_of_one_reward_at_the_end_is_that_reward_everywhere():
    rewards = torch.tensor([0.0] * 99 + [0.1])
    assert (
        reverse_scan(rewards, torch.zeros(100, dtype=torch.int64), 1.0).tolist() == [rewards[-1].item()] * 100
    )


def test_nothing_scans_to_nothing():
    assert reverse_scan(VALUES[:0], SEGMENTS[:0], 1.0).tolist() == []
