"""The losses and averages against slow loops written from the papers, with numeric gradients."""

import math
import random

import pytest
import torch

from lightrft.algorithms.averaging import denominators, token_weights
from lightrft.algorithms.losses import LOSSES, regularise
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch

LOW, HIGH, MAX_TOKENS, BETA, ENTROPY = 0.2, 0.28, 7, 0.04, 0.01


def clipped(new, old, advantage):
    """PPO eq. 7 with the two bounds of DAPO eq. 10, as a loss."""
    ratio = math.exp(new - old)
    bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
    return -min(ratio * advantage, bounded * advantage)


def policy_gradient(new, old, advantage):
    return -advantage * new


ORACLES = {"clipped": clipped, "policy_gradient": policy_gradient}


def k3(new, ref):
    """GRPO eq. 4."""
    return math.exp(ref - new) - (ref - new) - 1


def draw_answers(seed):
    """A list per answer; per token (chosen, new, old, ref, entropy, advantage)."""
    draw = random.Random(seed)

    def token():
        new = -3 * draw.random()
        return (
            draw.random() < 0.8,
            new,
            new + draw.gauss(0, 0.4),
            -draw.random(),
            draw.random(),
            draw.gauss(0, 1),
        )

    return [[token() for _ in range(draw.randrange(0, MAX_TOKENS))] for _ in range(6)]


def objective(answers, average, loss, penalties=True):
    """The loss of a mini-batch, written as the papers write it."""
    sums, lengths = [], []
    for answer in answers:
        terms = [
            ORACLES[loss](new, old, advantage)
            + (BETA * k3(new, ref) - ENTROPY * entropy if penalties else 0.0)
            for chosen, new, old, ref, entropy, advantage in answer
            if chosen
        ]
        if terms:
            sums.append(sum(terms))
            lengths.append(len(terms))
    if average == "token":
        return sum(sums) / sum(lengths)
    if average == "sequence":
        return sum(s / n for s, n in zip(sums, lengths, strict=True)) / len(sums)
    return sum(sums) / (len(sums) * MAX_TOKENS)


def ours(answers, average, loss):
    flat = [token for answer in answers for token in answer]
    columns = [torch.tensor(column, dtype=torch.float64) for column in list(zip(*flat, strict=True))[1:]]
    new, old, ref, entropy, advantages = columns
    new.requires_grad_()
    batch = make_batch(
        [len(answer) for answer in answers],
        mask=[token[0] for token in flat],
        old=old,
        ref=ref,
        advantages=advantages,
        weights=torch.zeros_like(old),
    )
    algo = AlgorithmConfig(clip=[LOW, HIGH], kl="k3", kl_coefficient=BETA, entropy_coefficient=ENTROPY)
    counts = denominators(batch.mask, batch.segments, batch.num_sequences)
    weights = token_weights(batch, average, MAX_TOKENS, *counts)
    terms = regularise(LOSSES[loss](new, batch, algo), new, batch, algo, entropy=entropy)
    total = (weights * terms.loss).sum()
    total.backward()
    assert new.grad is not None
    return total.item(), new.grad.tolist()


def moved(answers, position, step):
    """The answers with the new log-prob of one token, counted over all, moved by `step`."""
    result, index = [], 0
    for answer in answers:
        row = []
        for chosen, new, *rest in answer:
            row.append((chosen, new + (step if index == position else 0.0), *rest))
            index += 1
        result.append(row)
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("average", ["token", "sequence", "fixed"])
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient_agree_with_the_papers(loss, average, seed):
    answers = draw_answers(seed)
    value, gradient = ours(answers, average, loss)
    assert value == pytest.approx(objective(answers, average, loss), abs=1e-12)
    step = 1e-6
    numeric = [
        (
            objective(moved(answers, i, step), average, loss)
            - objective(moved(answers, i, -step), average, loss)
        )
        / (2 * step)
        for i in range(len(gradient))
    ]
    assert gradient == pytest.approx(numeric, abs=1e-8)
