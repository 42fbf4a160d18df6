import math

import pytest
import torch

from lightrft.algorithms.algorithm import build
from lightrft.algorithms.losses import LOSSES, add_regularisers, clipped, log_ratio, policy_gradient
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch
from lightrft.types import Terms
from lightrft.utils.imports import resolve

PPO = AlgorithmConfig(clip=[0.2, 0.3])


def logs(*probabilities):
    return torch.tensor(probabilities).log()


def gradient(loss, new, batch, algo=PPO):
    new = new.clone().requires_grad_()
    loss(new, batch, algo).loss.sum().backward()
    assert new.grad is not None
    return new.grad


def test_clipped_is_the_smaller_gain():
    """Ratios 2, 1/2, 1.25, and 2 again against a negative advantage."""
    batch = make_batch([4], old=logs(0.2, 0.4, 0.4, 0.2), advantages=[1.0, -1.0, 2.0, -1.0])
    new = logs(0.4, 0.2, 0.5, 0.4)
    terms = clipped(new, batch, PPO)
    torch.testing.assert_close(terms.loss, torch.tensor([-1.3, 0.8, -2.5, 2.0]))
    torch.testing.assert_close(gradient(clipped, new, batch), torch.tensor([0.0, 0.0, -2.5, 2.0]))


def test_the_clip_fraction_counts_only_tokens_whose_gradient_is_stopped():
    batch = make_batch([5], old=logs(0.2, 0.4, 0.4, 0.2, 0.2), advantages=[1.0, -1.0, 1.0, -1.0, 0.0])
    terms = clipped(logs(0.4, 0.2, 0.4, 0.4, 0.4), batch, PPO)
    assert terms.metrics["clip/fraction"].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert terms.metrics["clip/high"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert terms.metrics["clip/low"].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_without_old_log_probs_the_ratio_is_one_and_has_a_gradient():
    batch = make_batch([2], advantages=[1.0, -3.0])
    terms = clipped(logs(0.3, 0.6), batch, PPO)
    assert terms.loss.tolist() == [-1.0, 3.0]
    assert terms.metrics["ratio/mean"].tolist() == [1.0, 1.0]
    assert terms.metrics["approx_kl"].tolist() == [0.0, 0.0]
    assert gradient(clipped, logs(0.3, 0.6), batch).tolist() == [-1.0, 3.0]


def test_policy_gradient_is_the_advantage_times_the_log_prob():
    batch = make_batch([2], advantages=[1.0, -3.0])
    new = logs(0.5, 0.25)
    terms = policy_gradient(new, batch, PPO)
    torch.testing.assert_close(terms.loss, torch.tensor([math.log(2), -3 * math.log(4)]))
    assert gradient(policy_gradient, new, batch).tolist() == [-1.0, 3.0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # An answer of two tokens, ratios 2 and 1/2 (so that the ratio of the answer is 1), advantage 1 for both.
        ("clipped", [-1.3, -0.5]),
        ("sequence_clipped", [-1.0, -1.0]),
        ("sequence_clipped_token", [-1.0, -1.0]),
        # Logs ln 2, cut to 0.3, and -ln 2: the mean is (0.3 - ln 2) / 2.
        ("geometric", [-math.exp((0.3 - math.log(2)) / 2)] * 2),
        # Weights 1.3 and 0.8 on log 0.4 and log 0.2.
        ("cispo", [-1.3 * math.log(0.4), -0.8 * math.log(0.2)]),
        # Probabilities move by 0.2 and -0.2, within 0.3; weights are the ratios.
        ("dppo", [-2 * math.log(0.4), -0.5 * math.log(0.2)]),
        # KL of (0.2, 0.8) and (0.4, 0.6): 0.09 and 0.10.
        ("dppo_kl", [-2 * math.log(0.4), -0.5 * math.log(0.2)]),
        # Bounds of the ratio: (1 + sqrt(1 + 4 * 0.3 / 0.2)) / 2 = 1.82 and, for p = 0.4, 1/2.
        ("dcpo", [-(1 + math.sqrt(7)) / 2, -0.5]),
        ("topr", [-math.log(0.4), -math.log(0.2)]),
        ("dro", [-math.log(0.4) + 0.05 * math.log(2) ** 2, -math.log(0.2) + 0.05 * math.log(2) ** 2]),
        # The inverse of 1.3, at which the ratio 2 is held, and of 1/2.
        ("aspo", [-1 / 1.3, -2.0]),
        ("vespo", [-math.log(0.4), -math.log(0.2)]),
        ("sapo", [-4 / (1 + math.exp(-1)), -4 / (1 + math.exp(0.5))]),
        # Logs ln 1.3 and -ln 2; drift beyond ln 1.2: 0.2 - ln 1.2 + 0.2 (ln 2 - ln 1.2), below: 1/2 - 1 + ln 2.
        (
            "cpgd",
            [
                -math.log(1.3) + 0.01 * (0.2 - math.log(1.2) + 0.2 * (math.log(2) - math.log(1.2))),
                math.log(2) + 0.01 * (math.log(2) - 0.5),
            ],
        ),
    ],
)
def test_losses_by_hand(name, expected):
    batch = make_batch([2], old=logs(0.2, 0.4), advantages=[1.0, 1.0])
    torch.testing.assert_close(LOSSES[name](logs(0.4, 0.2), batch, PPO).loss, torch.tensor(expected))


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely():
    batch = make_batch([3], old=logs(0.1, 0.1, 0.4), advantages=[-1.0, 1.0, -1.0])
    terms = clipped(logs(0.8, 0.8, 0.4), batch, PPO, dual_clip=3.0)
    torch.testing.assert_close(terms.loss, torch.tensor([3.0, -1.3, 1.0]))
    assert terms.metrics["clip/fraction"].tolist() == [1.0, 1.0, 0.0]
    assert terms.metrics["clip/dual"].tolist() == [1.0, 0.0, 0.0]
    assert "clip/dual" not in clipped(logs(0.8, 0.8, 0.4), batch, PPO).metrics
    for name in ("clipped", "sequence_clipped", "sequence_clipped_token"):
        with pytest.raises(ValueError, match="dual_clip=0.9"):
            LOSSES[name](logs(0.8, 0.8, 0.4), batch, PPO, dual_clip=0.9)


def test_dual_clip_by_sequence_bounds_all_tokens_of_a_bad_response():
    """Ratios 8 and 2: their geometric mean is 4, beyond 3; in the other response ratio 2 stays."""
    batch = make_batch([2, 1], old=logs(0.1, 0.4, 0.4), advantages=[-1.0, -1.0, -1.0])
    terms = LOSSES["sequence_clipped"](logs(0.8, 0.8, 0.8), batch, PPO, dual_clip=3.0)
    torch.testing.assert_close(terms.loss, torch.tensor([3.0, 3.0, 2.0]))
    assert terms.metrics["clip/dual"].tolist() == [1.0, 1.0, 0.0]


def test_metrics_tell_how_far_the_policy_has_moved():
    batch = make_batch([2], old=logs(0.2, 0.4), advantages=[1.0, 1.0])
    metrics = policy_gradient(logs(0.4, 0.2).requires_grad_(), batch, PPO).metrics
    torch.testing.assert_close(metrics["ratio/mean"], torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(metrics["approx_kl"], torch.tensor([1 - math.log(2), math.log(2) - 0.5]))
    assert not any(metric.requires_grad for metric in metrics.values())


@pytest.mark.parametrize(("new", "cut"), [(900.0, 20.0), (-900.0, -20.0)])
def test_a_log_ratio_beyond_twenty_is_cut_so_that_no_loss_overflows(new, cut):
    batch = make_batch([1], old=[0.0], advantages=[-1.0])
    value = torch.tensor([new])
    assert log_ratio(value, batch).item() == cut
    assert clipped(value, batch, PPO).loss.isfinite().all()
    assert gradient(clipped, value, batch).tolist() == [0.0]


@pytest.mark.parametrize("loss", [clipped, policy_gradient])
def test_a_token_outside_the_mask_has_no_loss_and_no_gradient_even_if_it_is_nan(loss):
    nan = torch.nan
    batch = make_batch([2], mask=[True, False], old=[-1.0, nan], advantages=[1.0, nan])
    new = torch.tensor([-1.0, nan])
    assert loss(new, batch, PPO).loss[1] == 0
    assert gradient(loss, new, batch).tolist() == [-1.0, 0.0]


def nothing(length=2):
    return Terms(torch.zeros(length))


def test_the_divergence_from_the_reference_is_added_with_its_coefficient():
    batch = make_batch([2], ref=logs(0.45, 0.2))
    algo = AlgorithmConfig(kl="k3", kl_coefficient=0.1)
    terms = add_regularisers(nothing(), logs(0.9, 0.1), batch, algo, entropy=None)
    torch.testing.assert_close(terms.loss, torch.tensor([0.0193147, 0.0306853]))
    torch.testing.assert_close(terms.metrics["kl"], torch.tensor([0.193147, 0.306853]))


def test_a_divergence_in_the_reward_is_logged_but_not_in_the_loss():
    batch = make_batch([2], ref=logs(0.45, 0.2))
    algo = AlgorithmConfig(kl="k3", kl_coefficient=0.1, kl_in="reward")
    terms = add_regularisers(nothing(), logs(0.9, 0.1), batch, algo, entropy=None)
    assert terms.loss.tolist() == [0.0, 0.0]
    assert terms.metrics["kl"].sum() > 0


def test_entropy_is_rewarded_with_its_coefficient_and_always_logged():
    entropy = torch.tensor([1.0, 2.0], requires_grad=True)
    algo = AlgorithmConfig(entropy_coefficient=0.5)
    terms = add_regularisers(nothing(), torch.zeros(2), make_batch([2]), algo, entropy=entropy)
    assert terms.loss.tolist() == [-0.5, -1.0]
    assert terms.metrics["entropy"].tolist() == [1.0, 2.0]
    assert not terms.metrics["entropy"].requires_grad
    free = add_regularisers(nothing(), torch.zeros(2), make_batch([2]), PPO, entropy=entropy)
    assert not free.loss.requires_grad


@pytest.mark.parametrize("option", ["kl_coefficient", "entropy_coefficient"])
def test_a_coefficient_without_what_it_weighs_is_a_broken_trainer(option):
    with pytest.raises(AssertionError, match="needs the"):
        add_regularisers(
            nothing(), torch.zeros(2), make_batch([2]), AlgorithmConfig(**{option: 0.1}), entropy=None
        )


def test_dppo_leaves_out_what_has_moved_too_far_with_its_advantage():
    """By 0.4 with and against an advantage; the ratio of a rare token is bounded by its limit alone."""
    batch = make_batch([4], old=logs(0.2, 0.6, 0.2, 0.01), advantages=[1.0, 1.0, -1.0, 1.0])
    terms = LOSSES["dppo"](logs(0.6, 0.2, 0.6, 0.25), batch, PPO, ratio_limit=20.0)
    expected = [0.0, -math.log(0.2) / 3, 3 * math.log(0.6), -20 * math.log(0.25)]
    torch.testing.assert_close(terms.loss, torch.tensor(expected))
    assert terms.metrics["clip/fraction"].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_dppo_by_the_divergence_of_two_choices():
    """KL of (0.5, 0.5) from (0.9, 0.1): 0.5 ln(0.5 / 0.9) + 0.5 ln(0.5 / 0.1) = 0.51, of (0.5, 0.5) from (0.6, 0.4): 0.02."""
    batch = make_batch([2], old=logs(0.5, 0.5), advantages=[1.0, 1.0])
    terms = LOSSES["dppo_kl"](logs(0.9, 0.6), batch, PPO)
    torch.testing.assert_close(terms.loss, torch.tensor([0.0, -1.2 * math.log(0.6)]))


def test_topr_forgets_a_bad_response_that_the_policy_would_not_say_any_more():
    batch = make_batch([2, 2], old=logs(0.5, 0.5, 0.5, 0.5), advantages=[-1.0, -1.0, -1.0, -1.0])
    terms = LOSSES["topr"](logs(0.1, 0.25, 0.9, 0.9), batch, PPO)
    weights = [0.1, 0.1, 1.0, 1.0]
    torch.testing.assert_close(terms.loss, torch.tensor(weights) * logs(0.1, 0.25, 0.9, 0.9))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dppo", "ratio_limit", 1.0),
        ("dppo_kl", "ratio_limit", 0.0),
        ("dcpo", "ratio_limit", 0.5),
        ("topr", "weight_limit", 0.0),
        ("dro", "beta", 0.0),
    ],
)
def test_bounds_that_bound_nothing_are_refused(name, option, value):
    with pytest.raises(
        ValueError, match=rf"algorithm.options.{option}={value:g}: must be .* with algorithm.loss={name}"
    ):
        build(AlgorithmConfig(loss=name, options={option: value}), resolve)


def test_a_token_that_was_nearly_impossible_has_a_finite_loss():
    batch = make_batch([1], old=torch.tensor([-100.0]), advantages=[1.0])
    terms = LOSSES["dcpo"](torch.tensor([-99.0]), batch, AlgorithmConfig(clip=[0.0, 0.2]))
    assert torch.isfinite(terms.loss).all()
