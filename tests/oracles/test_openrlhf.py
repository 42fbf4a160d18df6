"""Our formulas beside OpenRLHF's, on the same random answers. Skipped where OpenRLHF or what it imports is not installed.

Its package imports a whole trainer; the files with the formulas are loaded by themselves.
"""

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from lightrft.algorithms.kl import KL, adaptive_kl
from lightrft.algorithms.losses import value_loss
from lightrft.algorithms.shaping import token_rewards
from lightrft.config import AlgorithmConfig
from tests.oracles.peers import HIGH, LOW, Answers, assert_equal, ours


def module(folder, name):
    """A file of OpenRLHF, without the packages around it."""
    spec = importlib.util.find_spec("openrlhf")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("OpenRLHF is not installed", allow_module_level=True)
    package = ModuleType(f"openrlhf_{folder.replace('/', '_')}")
    package.__path__ = [f"{spec.submodule_search_locations[0]}/{folder}"]
    sys.modules[package.__name__] = package
    return pytest.importorskip(f"{package.__name__}.{name}", reason="what OpenRLHF imports is not installed")


losses, utils = module("models", "loss"), module("models", "utils")
controller = module("trainer/ppo_utils", "kl_controller")


def theirs(answers, **settings):
    new = answers.new.clone().requires_grad_()
    function = losses.PolicyLoss(clip_eps_low=LOW, clip_eps_high=HIGH, **settings)
    value, *_ = function(
        new, answers.old, answers.advantages, answers.mask.double(), rollout_log_probs=answers.behavior
    )
    value.backward()
    return value.item(), new.grad[answers.mask]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", ["token", "sequence"])
def test_the_clipped_loss_is_equal(average, seed):
    answers = Answers(seed)
    assert_equal(ours("clipped", answers, average), theirs(answers, token_level_loss=average == "token"))


@pytest.mark.parametrize("seed", range(3))
def test_dual_clip_is_equal(seed):
    answers = Answers(seed)
    answers.new = answers.old + 3 * (answers.new - answers.old)
    mine = ours("clipped", answers, "token", options={"dual_clip": 1.2})
    assert_equal(mine, theirs(answers, dual_clip=1.2))


@pytest.mark.parametrize("seed", range(3))
def test_gspo_is_equal(seed):
    answers = Answers(seed)
    mine = ours("sequence_clipped", answers, "sequence")
    assert_equal(mine, theirs(answers, policy_loss_type="gspo"))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("mine", "other", "low"), [("truncate", "clip", 0.0), ("mask", "mask", 1 / 1.3)])
def test_importance_weights_per_token_are_equal(mine, other, low, seed):
    """Per answer theirs is a filter by the geometric mean; ours is the product, which is the unbiased weight."""
    answers = Answers(seed)
    found = ours("clipped", answers, "token", mismatch_correction=mine, mismatch_limit=1.3)
    assert_equal(
        found,
        theirs(
            answers, is_correction_level="token", is_correction_mode=other, is_correction_threshold=[low, 1.3]
        ),
    )
    assert found[0] != pytest.approx(ours("clipped", answers, "token")[0], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_loss_of_the_critic_is_equal(clip, seed):
    answers = Answers(seed)
    function = losses.ValueLoss(clip_eps=clip or None)
    expected = function(answers.new, answers.values, answers.returns, answers.mask.double())
    found = value_loss(answers.new[answers.mask], answers.packed(), clip).loss.mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["k1", "k2", "k3", "k1+", "k3+"])
def test_divergences_and_their_gradients_are_equal(name, seed):
    """`+` is their unbiased_gradient, on answers of the present policy. They compute in float32."""
    answers = Answers(seed)
    results = []
    for function in (
        KL[name],
        lambda new, ref: utils.compute_approx_kl(
            new, ref, kl_estimator=name.rstrip("+"), unbiased_gradient=name.endswith("+")
        ),
    ):
        new = answers.new.clone().requires_grad_()
        value = function(new, answers.ref)
        value.sum().backward()
        results.append((value.detach().double(), new.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_divergence_in_the_reward_is_equal(seed):
    answers = Answers(seed)
    algo = AlgorithmConfig(kl="k1", kl_in="reward", kl_coefficient=0.1, reward_clip=0.6)
    found = token_rewards(answers.packed(ref=answers.ref[answers.mask]), algo)
    divergence = utils.compute_approx_kl(answers.old, answers.ref) * answers.mask
    expected = utils.compute_reward(
        answers.scores, 0.1, divergence, answers.mask.long(), reward_clip_range=(-0.6, 0.6)
    )
    torch.testing.assert_close(found.double(), expected[answers.mask].double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("divergence", [0.0, 0.09, 0.11, 5.0])
def test_the_adaptive_coefficient_is_equal(divergence):
    """Their number of steps over the horizon is our gain."""
    one = controller.AdaptiveKLController(0.5, target=0.1, horizon=640)
    one.update(divergence, n_steps=64)
    assert adaptive_kl(0.5, divergence, target=0.1, gain=0.1) == pytest.approx(one.value)
