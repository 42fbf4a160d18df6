"""Random streams, and what is drawn from which distribution."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightrft.engines.sampling import candidates_after, draw, draw_telling, stream, uniforms
from lightrft.types import Sampling


def uniform_grid(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def kept_by_the_rules(probabilities: list[float], sampling: Sampling) -> dict[int, float]:
    """Temperature aside, the renormalised probabilities that top-k, then top-p, then min-p leave, in plain Python."""
    ranked = sorted(enumerate(probabilities), key=lambda pair: -pair[1])
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
        total = sum(p for _, p in ranked)
        ranked = [(token, p / total) for token, p in ranked]
    left, before = [], 0.0
    for token, p in ranked:
        if before < sampling.top_p and p >= sampling.min_p * ranked[0][1]:
            left.append((token, p))
        before += p
    total = sum(p for _, p in left)
    return {token: p / total for token, p in left}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=3),
        Sampling(top_p=0.6),
        Sampling(min_p=0.2),
        Sampling(top_k=5, top_p=0.7, min_p=0.3, temperature=1.5),
        Sampling(top_k=1),
        Sampling(top_k=1000),
        Sampling(top_p=0.9999),
    ],
)
@pytest.mark.parametrize("vocabulary", [7, 12, 600])
def test_support_and_logprobs_are_those_of_the_rules(sampling: Sampling, vocabulary: int) -> None:
    logits = 2 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    expected = kept_by_the_rules(torch.softmax(logits.double() / sampling.temperature, 0).tolist(), sampling)
    count = 20_000
    tokens, logprobs = draw(
        logits[None].clone(), torch.zeros(count, dtype=torch.int64), uniform_grid(count), sampling
    )
    asked = replace(sampling, support=True)
    same, _, (left,) = draw_telling(
        logits[None].clone(), torch.zeros(count, dtype=torch.int64), uniform_grid(count), asked
    )
    assert torch.equal(same, tokens)
    restricts = sampling.top_k or sampling.top_p < 1 or sampling.min_p
    assert sorted(left.tolist()) == (sorted(expected) if restricts else [])
    assert set(tokens.tolist()) <= set(expected)
    assert {token for token, p in expected.items() if p > 1 / count} <= set(tokens.tolist())
    assert_close(
        logprobs.double(),
        torch.tensor([math.log(expected[t]) for t in tokens.tolist()], dtype=torch.float64),
        atol=1e-5,
        rtol=1e-5,
    )
    share = torch.bincount(tokens, minlength=vocabulary).double() / count
    assert_close(
        share,
        torch.tensor([expected.get(t, 0.0) for t in range(vocabulary)], dtype=torch.float64),
        atol=1.5 / count,
        rtol=0,
    )


def test_temperature_zero_takes_the_likeliest_token_with_its_logprob_at_temperature_one() -> None:
    tokens, logprobs = draw(
        torch.tensor([[0.0, math.log(3.0)]]), None, torch.tensor([0.1]), Sampling(temperature=0)
    )
    assert tokens.tolist() == [1]
    assert_close(logprobs, torch.tensor([math.log(0.75)]))


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.full((1, 12), -math.inf)
    logits[0, [3, 7]] = 0.0
    extremes = torch.tensor([2.0**-54, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    for sampling in (Sampling(), Sampling(top_p=1 - 1e-6), Sampling(top_k=5)):
        tokens, _ = draw(logits.clone(), torch.zeros(3, dtype=torch.int64), extremes, sampling)
        assert set(tokens.tolist()) <= {3, 7}


def test_answers_that_share_a_row_draw_from_it_independently() -> None:
    logits = torch.tensor([[0.0, 0.0], [-math.inf, 0.0]])
    tokens, _ = draw(
        logits, torch.tensor([0, 1, 0]), torch.tensor([0.2, 0.2, 0.8], dtype=torch.float64), Sampling()
    )
    assert tokens.tolist() == [0, 1, 1]


def test_streams_are_uniform_and_fixed_by_seed_place_and_number() -> None:
    keys = torch.tensor(
        [stream(seed, place, sample) for seed in range(5) for place in range(20) for sample in range(20)]
    )
    assert len(set(keys.tolist())) == len(keys)
    drawn = torch.stack([uniforms(keys, torch.full_like(keys, counter)) for counter in range(10)])
    assert drawn.min() > 0
    assert drawn.max() < 1
    cells = torch.histc(drawn.float().flatten(), bins=50, min=0, max=1).double()
    expected = drawn.numel() / 50
    assert (
        (cells - expected) ** 2 / expected
    ).sum() < 85.4  # 0.1 % point of chi-square with 49 degrees of freedom
    assert torch.corrcoef(drawn)[0, 1:].abs().max() < 0.08
    assert stream(1, 2, 3) != stream(2, 1, 3) != stream(1, 3, 2)


def test_a_stream_is_read_at_a_place() -> None:
    key = torch.tensor([stream(0, 0, 0)])
    one_by_one = [float(uniforms(key, torch.tensor([i]))) for i in range(4)]
    assert uniforms(key.expand(4), torch.arange(4)).tolist() == one_by_one


def test_flat_and_peaked_distributions_of_one_batch_each_get_their_own_support() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5000, generator=generator) * torch.tensor([[0.1], [8.0], [0.5]])
    rows, sampling = torch.tensor([2, 1, 0]).repeat_interleave(2000), Sampling(top_p=0.9)
    tokens, logprobs = draw(logits.clone(), rows, uniform_grid(2000).repeat(3), sampling)
    for row in range(3):
        expected = kept_by_the_rules(torch.softmax(logits[row].double(), 0).tolist(), sampling)
        drawn, found = tokens[rows == row].tolist(), logprobs[rows == row]
        assert set(drawn) <= set(expected)
        assert_close(found, torch.tensor([math.log(expected[t]) for t in drawn]), atol=1e-4, rtol=0)


def test_more_candidates_are_looked_at_for_all_only_where_many_want_them():
    assert candidates_after(256, unsure=1, drawn=64) == candidates_after(256, unsure=31, drawn=64) == 256
    assert candidates_after(256, unsure=32, drawn=64) == candidates_after(256, unsure=1, drawn=1) == 2048
    assert candidates_after(2048, unsure=31, drawn=64) == 2048
    assert candidates_after(2048, unsure=32, drawn=64) == 0
