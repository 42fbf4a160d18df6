"""Selection of groups, answers and tokens, and the penalty for length, against plain Python."""

import math
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from statistics import pvariance

import pytest
import torch

from lightrft.algorithms.selection import GROUP_FILTERS, RESPONSE_FILTERS, high_entropy
from lightrft.algorithms.shaping import overlong_penalty
from lightrft.testing import make_batch
from lightrft.types import Prompt, Trajectory
from tests.properties.test_algorithms import sum_over_threads


def group(*rewards):
    prompt = Prompt(id="q", token_ids=[1], messages=[], target=None, source="s")
    return [
        Trajectory(prompt, 0, token_ids=[i], mask=[True], behavior=[0.0], finish="stop", reward=reward)
        for i, reward in enumerate(rewards)
    ]


def chosen(name, rewards, seed=0, **options):
    return [t.token_ids[0] for t in RESPONSE_FILTERS[name](group(*rewards), random.Random(seed), **options)]


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_kept_as_dapo_says(seed):
    """DAPO eq. 11: 0 < number of right answers < G."""
    draw = random.Random(seed)
    rewards = [float(draw.random() < 0.4) for _ in range(4)]
    assert GROUP_FILTERS["mixed_outcomes"](group(*rewards)) == (0 < sum(rewards) < len(rewards))
    assert GROUP_FILTERS["all"](group(*rewards))


def test_best_worst_takes_the_ends_and_the_first_of_equals():
    assert chosen("best_worst", [0.2, 0.9, 0.1, 0.9, 0.1]) == [1, 2]
    assert chosen("best_worst", [0.5]) == [0]


def test_best_random_takes_the_best_and_every_other_equally_often():
    drawn = [chosen("best_random", [0.2, 0.9, 0.1, 0.9], seed) for seed in range(600)]
    assert {pair[0] for pair in drawn} == {1}
    counts = Counter(pair[1] for pair in drawn)
    assert set(counts) == {0, 2, 3}
    assert min(counts.values()) > 150, "each is drawn 200 times on average, give or take 12"
    assert chosen("best_random", [0.5]) == [0]


def test_random_answers_takes_so_many_in_their_order():
    for seed in range(50):
        taken = chosen("random_responses", [0.0] * 6, seed, responses_to_learn_from=3)
        assert taken == sorted(set(taken))
        assert len(taken) == 3
    assert chosen("random_responses", [0.0] * 2, responses_to_learn_from=3) == [0, 1]
    with pytest.raises(ValueError, match="responses_to_learn_from=2.5"):
        chosen("random_responses", [0.0] * 6, responses_to_learn_from=2.5)


@pytest.mark.parametrize("seed", range(30))
def test_the_responses_that_vary_most_are_those_of_all_choices(seed):
    """PODS: no other choice of so many has rewards of a larger variance."""
    draw = random.Random(seed)
    rewards = [draw.choice([0.0, 0.2, 0.5, 1.0, draw.random()]) for _ in range(7)]
    count = draw.randint(1, 7)
    taken = chosen("max_variance", rewards, responses_to_learn_from=count)
    assert taken == sorted(set(taken))
    assert len(taken) == count
    largest = max(pvariance(some) for some in combinations(rewards, count))
    assert pvariance([rewards[i] for i in taken]) == pytest.approx(largest, abs=1e-12)


def test_the_responses_that_vary_most_by_hand():
    assert chosen("max_variance", [0.0, 1.0, 1.0, 0.0, 1.0, 1.0], responses_to_learn_from=4) == [0, 1, 2, 3]
    assert chosen("max_variance", [0.4, 0.5, 0.9, 0.1], responses_to_learn_from=2) == [2, 3]
    assert chosen("max_variance", [0.5] * 4, responses_to_learn_from=2) == [0, 1], "of equals the first"
    assert chosen("max_variance", [0.5] * 2, responses_to_learn_from=3) == [0, 1]
    with pytest.raises(ValueError, match="responses_to_learn_from=0"):
        chosen("max_variance", [0.0] * 6, responses_to_learn_from=0)


@pytest.mark.parametrize("length", range(0, 130))
def test_the_penalty_for_length_agrees_with_dapo(length):
    """DAPO eq. 13 with L_max = 120 and L_cache = 24, as a penalty."""
    most, cache = 120, 24
    if length <= most - cache:
        expected = 0.0
    elif length <= most:
        expected = -((most - cache) - length) / cache
    else:
        expected = 1.0
    assert overlong_penalty(length, most, cache) == pytest.approx(expected)
    assert overlong_penalty(length, most, 0) == 0.0


def draw_entropies(seed):
    draw = random.Random(seed)
    lengths = [draw.randrange(0, 9) for _ in range(6)]
    tokens = [
        (s, draw.random() < 0.8, draw.choice([0.0, 0.5, draw.random()]))
        for s, n in enumerate(lengths)
        for _ in range(n)
    ]
    return lengths, tokens


def oracle(tokens, share, over):
    """A token counts iff fewer than `share` of those it competes with are more uncertain; together they weigh as all did."""

    def competing(segment):
        return [e for s, m, e in tokens if m and (over == "batch" or s == segment)]

    def selected(segment, entropy):
        rivals = competing(segment)
        return sum(e > entropy for e in rivals) < math.ceil(share * len(rivals) - 1e-9)

    result = []
    for segment, in_mask, entropy in tokens:
        left = [e for e in competing(segment) if selected(segment, e)]
        counts = in_mask and selected(segment, entropy)
        result.append(len(competing(segment)) / len(left) if counts else 0.0)
    return result


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("over", ["batch", "sequence"])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_uncertain_tokens_agree_with_counting(share, over, seed):
    lengths, tokens = draw_entropies(seed)
    tokens = [(s, m, float(torch.tensor(e))) for s, m, e in tokens]
    batch = make_batch(lengths, mask=[m for _, m, _ in tokens])
    entropy = torch.tensor([e if m else math.nan for _, m, e in tokens])

    def select(batch, entropy, reduce):
        return high_entropy(
            entropy, batch.mask, batch.segments, batch.num_sequences, share=share, over=over, reduce=reduce
        )

    expected = oracle(tokens, share, over)
    assert select(batch, entropy, lambda x: x).tolist() == pytest.approx(expected)

    cut = sum(lengths[:3])
    halves = [make_batch(lengths[:3], mask=batch.mask[:cut]), make_batch(lengths[3:], mask=batch.mask[cut:])]
    with ThreadPoolExecutor(2) as ranks:
        total = sum_over_threads(2)
        parts = list(ranks.map(select, halves, [entropy[:cut], entropy[cut:]], [total, total]))
    assert torch.cat(parts).tolist() == pytest.approx(expected), "two ranks find what one does"
