"""The divergence estimators against sums over a whole vocabulary, in plain Python."""

import math

import pytest
import torch

from lightrft.algorithms.kl import KL
from lightrft.algorithms.shaping import teacher_advantage
from lightrft.testing import make_batch

POLICY = [0.5, 0.2, 0.2, 0.06, 0.04]
REFERENCE = [0.1, 0.3, 0.25, 0.05, 0.3]
LOGITS = [math.log(p) for p in POLICY]


def divergence(policy, reference):
    return sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))


def estimate(name, policy, reference):
    columns = [torch.tensor([math.log(p) for p in row], dtype=torch.float64) for row in (policy, reference)]
    return KL[name](*columns).tolist()


def oracle(name, p, q):
    ratio = q / p
    return {"k1": -math.log(ratio), "k2": math.log(ratio) ** 2 / 2, "k3": ratio - 1 - math.log(ratio)}[
        name.rstrip("+")
    ]


@pytest.mark.parametrize("name", KL)
def test_each_token_has_the_value_of_its_formula(name):
    expected = [oracle(name, p, q) for p, q in zip(POLICY, REFERENCE, strict=True)]
    assert estimate(name, POLICY, REFERENCE) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", ["k1", "k3", "k1+", "k3+"])
def test_the_mean_over_the_policy_is_the_divergence(name):
    values = estimate(name, POLICY, REFERENCE)
    mean = sum(p * value for p, value in zip(POLICY, values, strict=True))
    assert mean == pytest.approx(divergence(POLICY, REFERENCE), abs=1e-14)


def mean_gradient(name):
    """What a loss of this estimator pulls at, on average over tokens drawn from the policy, per logit."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    policy = logits.log_softmax(0)
    reference = torch.tensor([math.log(q) for q in REFERENCE], dtype=torch.float64)
    (policy.detach().exp() * KL[name](policy, reference)).sum().backward()
    assert logits.grad is not None
    return logits.grad.tolist()


def true_gradient(step=1e-6):
    def at(logits):
        total = sum(math.exp(x) for x in logits)
        return divergence([math.exp(x) / total for x in logits], REFERENCE)

    gradient = []
    for i in range(len(LOGITS)):
        up, down = list(LOGITS), list(LOGITS)
        up[i] += step
        down[i] -= step
        gradient.append((at(up) - at(down)) / (2 * step))
    return gradient


@pytest.mark.parametrize("name", ["k2", "k1+", "k3+"])
def test_in_a_loss_these_pull_as_the_divergence_does(name):
    assert mean_gradient(name) == pytest.approx(true_gradient(), abs=1e-8)


def test_in_a_loss_k1_pulls_nowhere():
    assert mean_gradient("k1") == pytest.approx([0.0] * 5, abs=1e-14)


def test_in_a_loss_k3_pulls_the_policy_to_the_reference_by_their_difference():
    """The gradient of the divergence the other way round, KL(reference || policy): p - q per logit."""
    assert mean_gradient("k3") == pytest.approx(
        [p - q for p, q in zip(POLICY, REFERENCE, strict=True)], abs=1e-14
    )


def test_a_teachers_advantage_pulls_the_policy_to_the_teacher_as_their_divergence_does():
    """E_p[A grad log p] with A = log q - log p, summed over the vocabulary, is minus the gradient of KL(p || q)."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    new = logits.log_softmax(-1)
    batch = make_batch([len(LOGITS)], old=new.detach(), teacher=torch.tensor(REFERENCE).double().log())
    weights = torch.tensor(POLICY, dtype=torch.float64)
    (-weights * teacher_advantage(batch) * new).sum().backward()
    assert logits.grad.tolist() == pytest.approx(true_gradient(), abs=1e-8)
