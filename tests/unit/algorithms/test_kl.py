import math

import pytest
import torch

from lightrft.algorithms.kl import KL, adaptive_kl, k1, k2, k3

POLICY = torch.tensor([0.9, 0.5, 0.1]).log()
REFERENCE = torch.tensor([0.45, 0.5, 0.2]).log()


def test_k1_is_the_log_ratio():
    torch.testing.assert_close(k1(POLICY, REFERENCE), torch.tensor([math.log(2), 0.0, -math.log(2)]))


def test_k2_is_half_its_square():
    torch.testing.assert_close(k2(POLICY, REFERENCE), torch.tensor([0.240227, 0.0, 0.240227]))


def test_k3_is_never_negative():
    torch.testing.assert_close(k3(POLICY, REFERENCE), torch.tensor([0.193147, 0.0, 0.306853]))


@pytest.mark.parametrize("name", KL)
def test_the_same_policy_has_no_divergence_at_all(name):
    assert KL[name](POLICY, POLICY.clone()).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", KL)
def test_the_gradient_flows_through_the_policy_only(name):
    policy, reference = POLICY.clone().requires_grad_(), REFERENCE.clone()
    KL[name](policy, reference).sum().backward()
    assert policy.grad is not None
    assert policy.grad.abs().sum() > 0
    assert not reference.requires_grad


def test_a_token_that_the_policy_almost_never_draws_does_not_overflow_k3():
    value = k3(torch.tensor([-500.0]), torch.tensor([0.0]))
    assert value.item() == pytest.approx(math.exp(20) - 21, rel=1e-6)


def test_a_policy_far_from_the_reference_is_still_pulled_back_by_k3():
    policy = torch.tensor([0.0], requires_grad=True)
    k3(policy, torch.tensor([-500.0])).sum().backward()
    assert policy.grad is not None
    assert policy.grad.item() == 1.0


def test_k3_keeps_its_sign_for_tiny_differences():
    """exp(x) - 1 would lose them to rounding."""
    difference = torch.tensor([1e-3, -1e-3, 3e-4])
    torch.testing.assert_close(k3(difference, torch.zeros(3)), difference.square() / 2, rtol=2e-3, atol=0.0)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [(0.5, 0.51), (0.11, 0.505), (0.1, 0.5), (0.09, 0.495), (0.0, 0.49), (math.nan, 0.5), (math.inf, 0.5)],
)
def test_the_coefficient_follows_the_divergence_by_at_most_a_fifth_of_the_gain(divergence, expected):
    """Ziegler et al. with a gain of 0.1 and a target of 0.1."""
    assert adaptive_kl(0.5, divergence, target=0.1, gain=0.1) == pytest.approx(expected)
