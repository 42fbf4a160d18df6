"""A*-PO (Brantley et al. 2025, algorithm 1): the values of prompts and the regression, against the paper in plain Python."""

import itertools
import math
import random

import pytest
import torch

from lightrft.algorithms.averaging import denominators, token_weights
from lightrft.algorithms.losses import LOSSES
from lightrft.algorithms.optimal_values import value_of
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch

ROW = AlgorithmConfig(advantage="optimal_value", loss="advantage_regression")


def test_values_by_hand():
    assert value_of([0.0, 1.0], 0.5) == pytest.approx(0.5 * math.log((1 + math.e**2) / 2))
    assert value_of([0.0, 1.0], 0.5) == pytest.approx(0.7168904, abs=1e-7)
    assert value_of([0.0] * 7 + [1.0], 0.5) == pytest.approx(0.2935132, abs=1e-7)
    assert value_of([0.1] * 8, 0.3) == 0.1
    assert math.isnan(value_of([], 0.5))


@pytest.mark.parametrize("seed", range(4))
def test_values_agree_with_a_plain_mean_of_exponentials(seed):
    draw = random.Random(seed)
    rewards, beta = [draw.gauss(0, 1) for _ in range(draw.randrange(1, 9))], draw.uniform(0.2, 3)
    plain = beta * math.log(sum(math.exp(r / beta) for r in rewards) / len(rewards))
    assert value_of(rewards, beta) == pytest.approx(plain, abs=1e-12)
    assert value_of([r + 2 for r in rewards], beta) == pytest.approx(plain + 2, abs=1e-12)
    assert sum(rewards) / len(rewards) - 1e-12 <= value_of(rewards, beta) <= max(rewards) + 1e-12


def test_values_go_from_the_largest_reward_to_the_mean():
    rewards = [0.0, 0.0, 1.0, -800.0]
    assert value_of(rewards, 1e-6) == pytest.approx(1.0, abs=1e-5)
    assert value_of(rewards, 1e9) == pytest.approx(-199.75, abs=1e-3)


def plain_objective(answers, beta):
    """Mean over the responses that have a chosen token, each of tokens (chosen, new, ref) with its r - V*."""
    losses = []
    for tokens, advantage in answers:
        chosen = [(new, ref) for taken, new, ref in tokens if taken]
        if chosen:
            log_ratio = math.log(math.prod(math.exp(new) / math.exp(ref) for new, ref in chosen))
            losses.append((beta * log_ratio - advantage) ** 2)
    return sum(losses) / len(losses)


def of_ours(answers, beta):
    """Value and gradient of our loss, averaged by sequence."""
    flat = [token for tokens, _ in answers for token in tokens]
    mask, new, ref = zip(*flat, strict=True)
    new = torch.tensor(new, dtype=torch.float64).requires_grad_()
    batch = make_batch(
        [len(tokens) for tokens, _ in answers],
        mask=list(mask),
        old=new.detach() - 0.3,  # is not read
        ref=torch.tensor(ref, dtype=torch.float64),
        advantages=torch.tensor(
            [advantage if m else 99.0 for tokens, advantage in answers for m, _, _ in tokens],
            dtype=torch.float64,
        ),
        weights=torch.zeros(len(flat), dtype=torch.float64),
    )
    weights = token_weights(
        batch, "sequence", 7, *denominators(batch.mask, batch.segments, batch.num_sequences)
    )
    terms = LOSSES["advantage_regression"](new, batch, ROW, beta=beta)
    total = (weights * terms.loss).sum()
    total.backward()
    return total.item(), new.grad.tolist()


def draw_answers(seed):
    draw = random.Random(seed)

    def tokens():
        return [(draw.random() < 0.8, -3 * draw.random(), -draw.random()) for _ in range(draw.randrange(6))]

    return [(tokens(), draw.gauss(0, 1)) for _ in range(6)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beta", [0.001, 0.5])
def test_value_and_gradient_agree_with_the_paper(beta, seed):
    answers = draw_answers(seed)
    value, gradient = of_ours(answers, beta)
    assert value == pytest.approx(plain_objective(answers, beta), abs=1e-12)
    step, numeric = 1e-6, []
    for answer, (tokens, _) in enumerate(answers):
        for place in range(len(tokens)):

            def moved(by, answer=answer, place=place):
                changed = [([*tokens], advantage) for tokens, advantage in answers]
                taken, new, ref = changed[answer][0][place]
                changed[answer][0][place] = (taken, new + by, ref)
                return plain_objective(changed, beta)

            numeric.append((moved(step) - moved(-step)) / (2 * step))
    assert gradient == pytest.approx(numeric, abs=1e-8)


def test_the_regression_by_hand():
    """Two tokens twice and half as likely as under the reference, then one that is twice as likely."""
    half, two = math.log(0.5), math.log(2)
    batch = make_batch([2, 1], ref=[-1.0, -1.0, -1.0], advantages=[0.5, 0.5, -1.0])
    new = torch.tensor([-1.0 + two, -1.0 + half, -1.0 + two])
    loss = LOSSES["advantage_regression"](new, batch, ROW, beta=1.0).loss
    torch.testing.assert_close(loss, torch.tensor([0.25, 0.25, (two + 1) ** 2]))


def test_the_best_policy_near_the_reference_has_no_loss_and_is_found():
    """All responses of two tokens: pi*(y) = ref(y) exp(r(y) / beta) / Z, of which the value is beta log Z. From the reference, descent on
    samples of any policy ends there."""
    draw, beta = torch.Generator().manual_seed(0), 0.7
    reference = torch.log_softmax(torch.randn(9, generator=draw, dtype=torch.float64), 0)
    rewards = torch.rand(9, generator=draw, dtype=torch.float64)
    value = beta * math.log(
        sum(math.exp(p + r / beta) for p, r in zip(reference.tolist(), rewards.tolist(), strict=True))
    )
    best = reference + (rewards - value) / beta
    assert best.exp().sum() == pytest.approx(1.0)

    def loss(logprobs):
        """The log-prob of a response lies on its two tokens, a third on the first."""
        parts = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        batch = make_batch([2] * 9, ref=(reference[:, None] * parts).flatten())
        batch.advantages = (rewards - value).repeat_interleave(2)
        terms = LOSSES["advantage_regression"]((logprobs[:, None] * parts).flatten(), batch, ROW, beta=beta)
        return terms.loss.mean()

    assert loss(best).item() == pytest.approx(0.0, abs=1e-24)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        found = loss(torch.log_softmax(logits, 0))
        found.backward()
        return found

    optimizer.step(closure)
    torch.testing.assert_close(torch.log_softmax(logits, 0).detach(), best, rtol=0, atol=1e-5)


def test_the_mean_over_samples_of_the_reference_is_the_value():
    """With every response of a uniform reference sampled once, the estimate is the value itself."""
    rewards = [a * b for a, b in itertools.product([0.0, 0.5, 1.0], repeat=2)]
    exact = 0.5 * math.log(sum(math.exp(r / 0.5) / 9 for r in rewards))
    assert value_of(rewards, 0.5) == pytest.approx(exact, abs=1e-12)
