import pytest
import torch

from lightrft.algorithms.averaging import denominators, learned_groups, token_weights
from lightrft.testing import make_batch

MASK = [True, True, True, False, True]


def weights(average, lengths=(1, 4), mask=MASK, max_tokens=8):
    batch = make_batch(lengths, mask=mask)
    return token_weights(
        batch, average, max_tokens, *denominators(batch.mask, batch.segments, batch.num_sequences)
    )


def test_denominators_count_tokens_and_answers():
    batch = make_batch([1, 4], mask=MASK)
    assert denominators(batch.mask, batch.segments, 2) == (4, 2)


def test_an_answer_without_a_token_to_learn_from_is_not_counted():
    batch = make_batch([1, 0, 2, 1], mask=[True, False, False, True])
    assert denominators(batch.mask, batch.segments, 4) == (2, 2)


def test_token_average_weighs_every_token_the_same():
    assert weights("token").tolist() == [0.25, 0.25, 0.25, 0.0, 0.25]


def test_sequence_average_weighs_every_answer_the_same():
    torch.testing.assert_close(weights("sequence"), torch.tensor([1 / 2, 1 / 6, 1 / 6, 0, 1 / 6]))


def test_longer_answers_do_not_weigh_more_per_token_with_fixed_averaging():
    assert weights("fixed").tolist() == [1 / 16, 1 / 16, 1 / 16, 0.0, 1 / 16]


def test_fixed_average_of_full_answers_is_the_token_average():
    full = {"lengths": (3, 3), "mask": [True] * 6}
    torch.testing.assert_close(weights("fixed", max_tokens=3, **full), weights("token", **full))


@pytest.mark.parametrize("average", ["token", "sequence", "fixed"])
def test_nothing_to_learn_from_gives_zero_weights(average):
    assert weights(average, lengths=(2, 0), mask=[False, False]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("average", ["token", "sequence", "fixed"])
def test_a_rank_without_answers_gets_no_weights(average):
    assert token_weights(make_batch([]), average, 8, 10, 2).tolist() == []


def test_denominators_of_other_ranks_shrink_the_weights():
    batch = make_batch([2])
    assert token_weights(batch, "sequence", 8, tokens=10, sequences=4).tolist() == [0.125, 0.125]


def test_group_average_weighs_every_prompt_the_same_however_many_responses_it_has():
    batch = make_batch([1, 2, 1, 3], groups=[5, 5, 5, 9], mask=[True, True, False, True, True, False, True])
    assert learned_groups(batch) == 2
    found = token_weights(batch, "group", 8, 5, learned_groups(batch))
    torch.testing.assert_close(found, torch.tensor([1 / 6, 1 / 6, 0, 1 / 6, 1 / 4, 0, 1 / 4]))


def test_a_group_without_a_token_to_learn_from_is_not_counted():
    assert learned_groups(make_batch([1, 2], groups=[5, 9], mask=[False, True, False])) == 1
