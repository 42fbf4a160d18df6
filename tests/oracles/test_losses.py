"""The losses and averages against slow loops written from the papers, with numeric gradients."""

import math
import random

import pytest
import torch

from lightrft.algorithms.averaging import denominators, token_weights
from lightrft.algorithms.losses import LOSSES, add_regularisers, value_loss
from lightrft.algorithms.surveys import SURVEYING
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch

LOW, HIGH, MAX_TOKENS, BETA, ENTROPY = 0.2, 0.28, 7, 0.04, 0.01
BESIDE = ("advantage_regression",)
"""Losses that compare with the reference, see test_optimal_values.py."""


# An oracle takes the chosen tokens of one answer as (new, old, advantage) and the same tokens with `new` as it was before
# anything moved, for what has no gradient; it gives the loss of each token.


def pessimistic(ratio, advantage):
    """PPO eq. 7 with the two bounds of DAPO eq. 10, as a loss."""
    bounded = min(max(ratio, 1 - LOW), 1 + HIGH)
    return -min(ratio * advantage, bounded * advantage)


def clipped(answer, still):
    return [pessimistic(math.exp(new - old), advantage) for new, old, advantage in answer]


def policy_gradient(answer, still):
    return [-advantage * new for new, _, advantage in answer]


def sequence_clipped(answer, still):
    """GSPO eqs. 5 and 7: (p(answer) / p_old(answer)) ** (1 / length)."""
    product = 1.0
    for new, old, _ in answer:
        product *= math.exp(new) / math.exp(old)
    return [pessimistic(product ** (1 / len(answer)), advantage) for _, _, advantage in answer]


def sequence_clipped_token(answer, still):
    """GSPO eqs. 13 and 14."""
    product = 1.0
    for new, old, _ in still:
        product *= math.exp(new) / math.exp(old)
    ratio = product ** (1 / len(still))
    return [
        pessimistic(ratio * math.exp(new) / math.exp(before), advantage)
        for (new, _, advantage), (before, _, _) in zip(answer, still, strict=True)
    ]


def geometric(answer, still):
    """GMPO eq. 4: the product of the tokens' clipped ratios to the power of 1 / length."""
    product = 1.0
    for new, old, advantage in answer:
        ratio = math.exp(new - old)
        bounded = min(max(ratio, math.exp(-LOW)), math.exp(HIGH))
        product *= min(ratio, bounded) if advantage > 0 else max(ratio, bounded)
    return [-advantage * product ** (1 / len(answer)) for _, _, advantage in answer]


def cispo(answer, still):
    """MiniMax-M1 eqs. 4 and 5."""
    weights = [min(max(math.exp(new - old), 1 - LOW), 1 + HIGH) for new, old, _ in still]
    return [-w * advantage * new for w, (new, _, advantage) in zip(weights, answer, strict=True)]


def sapo(answer, still):
    """SAPO eqs. 5 and 6."""
    losses = []
    for new, old, advantage in answer:
        tau = 1.0 if advantage > 0 else 1.05
        gate = 4 / tau / (1 + math.exp(-tau * (math.exp(new - old) - 1)))
        losses.append(-gate * advantage)
    return losses


def cpgd(answer, still):
    """CPGD: the clipped log-ratio, and 0.01 times a drift whose slope is min(ratio - 1, 0.2)."""
    losses = []
    for new, old, advantage in answer:
        d = new - old
        bounded = min(max(d, math.log(1 - LOW)), math.log(1 + HIGH))
        knee = math.log(1.2)
        drift = math.exp(d) - 1 - d if d <= knee else (1.2 - 1 - knee) + 0.2 * (d - knee)
        losses.append(-min(d * advantage, bounded * advantage) + 0.01 * drift)
    return losses


def dppo(answer, still):
    """Total variation of "this token or another": a token beyond its bound, in the direction of its advantage, is left out."""
    losses = []
    for (new, old, advantage), (before, _, _) in zip(answer, still, strict=True):
        moved = math.exp(before) - math.exp(old)
        out = moved > HIGH if advantage > 0 else moved < -LOW
        losses.append(0.0 if out else -advantage * min(math.exp(before - old), 20.0) * new)
    return losses


def dppo_kl(answer, still):
    """The same bounds for the divergence of "this token or another", on the side that the advantage moves to."""
    losses = []
    for (new, old, advantage), (before, _, _) in zip(answer, still, strict=True):
        p, q = math.exp(old), math.exp(before)
        others = [math.log(max(1 - x, 1e-7)) for x in (p, q)]  # drawn log-probs may lie above 0
        apart = p * math.log(p / q) + (1 - p) * (others[0] - others[1])
        out = (apart > HIGH and q > p) if advantage > 0 else (apart > LOW and q < p)
        losses.append(0.0 if out else -advantage * min(q / p, 20.0) * new)
    return losses


def dcpo(answer, still):
    """The ratio r is held where |r (r - 1) p_old| is at most the bound, found by bisection; no further than 10."""
    losses = []
    for new, old, advantage in answer:
        p, low, high = math.exp(old), [0.5, 1.0], [1.0, 1e6]
        for _ in range(200):
            middle = sum(low) / 2
            low[middle * (middle - 1) * p > -LOW] = middle
            middle = sum(high) / 2
            high[middle * (middle - 1) * p > HIGH] = middle
        least = 0.5 if 0.5 * -0.5 * p > -LOW else low[1]
        ratio, most = math.exp(new - old), min(high[1], 10.0)
        losses.append(-min(ratio * advantage, min(max(ratio, least), most) * advantage))
    return losses


def topr(answer, still):
    """Good responses as they are, bad ones by the probability that the policy has left for them, at most 1."""
    product = math.prod(math.exp(new - old) for new, old, _ in still)
    return [-(1.0 if advantage > 0 else min(product, 1.0)) * advantage * new for new, _, advantage in answer]


def dro(answer, still):
    return [-advantage * new + 0.05 * (new - old) ** 2 for new, old, advantage in answer]


def aspo(answer, still):
    """A good token weighs by the inverse of its ratio; a weight above 3 is 3, and goes on having a gradient."""
    losses = []
    for (new, old, advantage), (before, _, _) in zip(answer, still, strict=True):
        if advantage > 0:
            ratio, held = min(math.exp(new - old), 1 + HIGH), min(math.exp(before - old), 1 + HIGH)
            weight, value = 1 / held, ratio / held**2
        else:
            value, weight = max(math.exp(new - old), 1 - LOW), max(math.exp(before - old), 1 - LOW)
        losses.append(-advantage * (3 * new if weight > 3 else value))
    return losses


def vespo(answer, still):
    """The gamma-shaped weight of the product of all ratios."""
    product = math.prod(math.exp(new - old) for new, old, _ in still)
    losses = []
    for new, _, advantage in answer:
        k, decay = (2, 3) if advantage >= 0 else (3, 2)
        losses.append(-advantage * math.exp(decay) * product**k * math.exp(-decay * product) * new)
    return losses


ORACLES = {
    "aspo": aspo,
    "vespo": vespo,
    "dppo": dppo,
    "dppo_kl": dppo_kl,
    "dcpo": dcpo,
    "topr": topr,
    "dro": dro,
    "clipped": clipped,
    "policy_gradient": policy_gradient,
    "sequence_clipped": sequence_clipped,
    "sequence_clipped_token": sequence_clipped_token,
    "geometric": geometric,
    "cispo": cispo,
    "sapo": sapo,
    "cpgd": cpgd,
}


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


def only_chosen(answer):
    return [(new, old, advantage) for chosen, new, old, _, _, advantage in answer if chosen]


def objective(answers, still, average, loss):
    """The loss of a mini-batch, written as the papers write it; `still` are the answers before anything moved."""
    sums, lengths = [], []
    for answer, before in zip(answers, still, strict=True):
        chosen = [token for token in answer if token[0]]
        if chosen:
            policy = loss(only_chosen(answer), only_chosen(before))
            terms = [
                own + BETA * k3(new, ref) - ENTROPY * entropy
                for own, (_, new, _, ref, entropy, _) in zip(policy, chosen, strict=True)
            ]
            sums.append(sum(terms))
            lengths.append(len(terms))
    if average == "token":
        return sum(sums) / sum(lengths)
    if average == "sequence":
        return sum(s / n for s, n in zip(sums, lengths, strict=True)) / len(sums)
    return sum(sums) / (len(sums) * MAX_TOKENS)


def ours(answers, average, loss, **options):
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
    terms = add_regularisers(LOSSES[loss](new, batch, algo, **options), new, batch, algo, entropy=entropy)
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


def numeric_gradient(answers, average, loss):
    step = 1e-6
    count = sum(map(len, answers))
    return [
        (
            objective(moved(answers, i, step), answers, average, loss)
            - objective(moved(answers, i, -step), answers, average, loss)
        )
        / (2 * step)
        for i in range(count)
    ]


OF_TOKENS = [
    name for name in LOSSES if name not in (*SURVEYING, *BESIDE) and not hasattr(LOSSES[name], "needs_moved")
]
"""Others have oracles of their own: test_surveys.py, test_diffusion_nft.py."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("average", ["token", "sequence", "fixed"])
@pytest.mark.parametrize("loss", OF_TOKENS)
def test_value_and_gradient_agree_with_the_papers(loss, average, seed):
    answers = draw_answers(seed)
    value, gradient = ours(answers, average, loss)
    assert value == pytest.approx(objective(answers, answers, average, ORACLES[loss]), abs=1e-12)
    assert gradient == pytest.approx(numeric_gradient(answers, average, ORACLES[loss]), abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_dual_clip_agrees_with_its_paper(seed):
    """Ye et al. 2020, eq. 5: max(min(r A, clip(r) A), c A) where A < 0."""
    answers, bound = draw_answers(seed), 1.1

    def dual(answer, still):
        return [
            -max(-pessimistic(math.exp(new - old), a), bound * a)
            if a < 0
            else pessimistic(math.exp(new - old), a)
            for new, old, a in answer
        ]

    value, gradient = ours(answers, "token", "clipped", dual_clip=bound)
    assert value == pytest.approx(objective(answers, answers, "token", dual), abs=1e-12)
    assert gradient == pytest.approx(numeric_gradient(answers, "token", dual), abs=1e-8)
    assert value != ours(answers, "token", "clipped")[0]


@pytest.mark.parametrize("loss", ["sequence_clipped", "sequence_clipped_token"])
@pytest.mark.parametrize("seed", range(4))
def test_the_dual_clip_of_a_response_bounds_its_ratio(loss, seed):
    """The same bound where the ratio is that of the response: c A where A < 0 and the loss would be worse."""
    answers, bound = draw_answers(seed), 1.02

    def dual(answer, still):
        losses = ORACLES[loss](answer, still)
        return [min(x, -bound * a) if a < 0 else x for x, (_, _, a) in zip(losses, answer, strict=True)]

    value, gradient = ours(answers, "sequence", loss, dual_clip=bound)
    assert value == pytest.approx(objective(answers, answers, "sequence", dual), abs=1e-12)
    assert gradient == pytest.approx(numeric_gradient(answers, "sequence", dual), abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_value_loss_is_half_the_larger_squared_error(clip, seed):
    draw = random.Random(seed)
    rows = [(draw.random() < 0.8, draw.gauss(0, 1), draw.gauss(0, 1), draw.gauss(0, 1)) for _ in range(30)]

    def loss(value, old, target):
        held = old + min(max(value - old, -clip), clip) if clip else value
        return max((value - target) ** 2, (held - target) ** 2) / 2

    mask, values, old, returns = (list(column) for column in zip(*rows, strict=True))
    new = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    batch = make_batch(
        [10, 20],
        mask=mask,
        values=torch.tensor(old, dtype=torch.float64),
        returns=torch.tensor(returns, dtype=torch.float64),
    )
    found = value_loss(new, batch, clip).loss
    assert found.tolist() == pytest.approx([loss(v, o, r) if m else 0.0 for m, v, o, r in rows], abs=1e-12)
    found.sum().backward()
    step = 1e-6
    numeric = [
        (loss(v + step, o, r) - loss(v - step, o, r)) / (2 * step) if m else 0.0 for m, v, o, r in rows
    ]
    assert new.grad.tolist() == pytest.approx(numeric, abs=1e-8)
