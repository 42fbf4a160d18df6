"""Our formulas beside verl's, on the same random answers. Skipped where verl is not installed.

Where we differ on purpose a test says so; see also docs/algorithms.md.
"""

import numpy as np
import pytest
import torch

from lightrft.algorithms.advantages import ADVANTAGES
from lightrft.algorithms.kl import KL
from lightrft.algorithms.losses import value_loss
from lightrft.config import AlgorithmConfig
from tests.oracles.peers import HIGH, LOW, WIDTH, Answers, ours

verl = pytest.importorskip("verl.trainer.ppo.core_algos", reason="verl is not installed")
ActorConfig = pytest.importorskip("verl.workers.config").ActorConfig

AVERAGES = {"token": "token-mean", "sequence": "seq-mean-token-mean", "fixed": "seq-mean-token-sum-norm"}


def theirs(loss, answers, average, **settings):
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        **{"clip_ratio_low": LOW, "clip_ratio_high": HIGH, "clip_ratio_c": 1e9} | settings,
    )
    new = answers.new.clone().requires_grad_()
    function = verl.get_policy_loss_fn(loss)
    value, _ = function(
        old_log_prob=answers.old,
        log_prob=new,
        advantages=answers.advantages,
        response_mask=answers.mask.double(),
        loss_agg_mode=AVERAGES[average],
        config=config,
    )
    value.backward()
    return value.item(), new.grad[answers.mask]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(
    ("mine", "verls"),
    [("clipped", "vanilla"), ("cispo", "cispo"), ("sapo", "sapo"), ("sequence_clipped_token", "gspo")],
)
def test_losses_and_their_gradients_are_equal(mine, verls, average, seed):
    """verl computes GSPO and SAPO with averages over sequences, whatever is set; so those are compared."""
    answers = Answers(seed)
    if verls in ("gspo", "sapo") and average != "sequence":
        pytest.skip(f"verl has no {verls} with average {average}")
    found, gradient = ours(mine, answers, average)
    expected, their_gradient = theirs(verls, answers, average)
    assert found == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_dual_clip_is_equal(seed):
    answers = Answers(seed)
    answers.new = answers.old + 3 * (answers.new - answers.old)
    assert ours("clipped", answers, "token", options={"dual_clip": 1.2})[0] == pytest.approx(
        theirs("vanilla", answers, "token", clip_ratio_c=1.2)[0], abs=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("verls", "mine"), [("dppo_tv", "dppo"), ("dppo_kl", "dppo_kl")])
def test_dppo_is_equal(verls, mine, average, seed):
    """With probabilities that move by up to a half; verl needs log-probs below 0."""
    answers = Answers(seed)
    answers.old, answers.new = (-(x.abs() + 0.05) * answers.mask for x in (answers.old, answers.new))
    found, gradient = ours(mine, answers, average, clip=(0.05, 0.08), options={"ratio_limit": 1.5})
    settings = {"clip_ratio_low": 0.05, "clip_ratio_high": 0.08, "clip_ratio_c": 1.5}
    expected, their_gradient = theirs(verls, answers, average, **settings)
    assert found == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_dro_is_equal(seed):
    answers = Answers(seed)
    policy_loss = pytest.importorskip("verl.workers.config").PolicyLossConfig
    if "dro_beta" not in policy_loss.__dataclass_fields__:
        pytest.skip("this verl has no DRO")
    found, gradient = ours("dro", answers, "token", options={"beta": 0.3})
    expected, their_gradient = theirs("dro", answers, "token", policy_loss=policy_loss(dro_beta=0.3))
    assert found == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(
    ("name", "mine", "verls"),
    [
        (
            "clip_cov",
            {"covariance_fraction": 1.0, "covariance_low": 0.1, "covariance_high": 2.0},
            {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.1, "clip_cov_ub": 2.0},
        ),
        (
            "kl_cov",
            {"covariance_fraction": 0.25, "covariance_penalty": 0.7},
            {"kl_cov_ratio": 0.25, "ppo_kl_coef": 0.7},
        ),
    ],
)
def test_tokens_chosen_by_their_covariance_are_equal(name, mine, verls, average, seed):
    """For Clip-Cov with so large a share that all candidates are taken, since verl draws from its own generator."""
    answers = Answers(seed)
    policy_loss = pytest.importorskip("verl.workers.config").PolicyLossConfig
    found, gradient = ours(name, answers, average, options=mine)
    expected, their_gradient = theirs(name, answers, average, policy_loss=policy_loss(**verls))
    assert found == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_geometric_is_equal_averaged_by_sequence(seed):
    answers = Answers(seed)
    found, gradient = ours("geometric", answers, "sequence")
    expected, their_gradient = theirs("geo_mean", answers, "sequence")
    assert found == pytest.approx(expected, abs=1e-7)
    torch.testing.assert_close(gradient, their_gradient, atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_group_advantages_are_equal(seed):
    answers = Answers(seed)
    index = np.array(answers.groups)
    arguments = {
        "token_level_rewards": answers.rewards,
        "response_mask": answers.mask.double(),
        "index": index,
    }
    algo = AlgorithmConfig()
    expected = {
        "group_norm": verl.compute_grpo_outcome_advantage(**arguments)[0],
        "group_mean": verl.compute_grpo_outcome_advantage(**arguments, norm_adv_by_std_in_grpo=False)[0],
        "leave_one_out": verl.compute_rloo_outcome_advantage(**arguments)[0],
        "length_weighted_mean": verl.compute_opo_outcome_advantage(**arguments)[0],
    }
    for name, padded in expected.items():
        found = ADVANTAGES[name](answers.packed(), algo)[0]
        torch.testing.assert_close(found, padded[answers.mask].double(), atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name",
    ["compute_optimal_token_baseline_advantage", "compute_multi_turn_optimal_token_baseline_advantage"],
)
def test_the_optimal_token_baseline_is_equal(name, seed):
    """Beyond the last sibling our baseline is the group's mean, theirs 0."""
    if not hasattr(verl, name):
        pytest.skip("this verl has no optimal token baseline")
    answers = Answers(seed)
    answers.old = -(answers.old.abs() + 0.05) * answers.mask
    p, draw = answers.old.exp(), torch.Generator().manual_seed(seed)
    squares = p**2 + torch.rand(p.shape, generator=draw, dtype=p.dtype) * (1 - p) ** 2
    arguments = {
        "token_level_rewards": answers.rewards,
        "response_mask": answers.mask.double(),
        "index": np.array(answers.groups),
        "old_log_probs": answers.old,
        "sum_pi_squared": squares,
    }
    expected = getattr(verl, name)(**arguments)[0].double()
    lengths = answers.mask.sum(1).view(2, 4)
    alone = torch.arange(WIDTH) >= lengths.topk(2).values[:, 1].repeat_interleave(4)[:, None]
    expected = expected - alone * answers.scores.view(2, 4).mean(1).repeat_interleave(4)[:, None]
    found = ADVANTAGES["optimal_token_baseline"](
        answers.packed(squares=squares[answers.mask]), AlgorithmConfig()
    )[0]
    torch.testing.assert_close(found, expected[answers.mask], atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5)])
def test_gae_is_equal_before_whitening(discount, trace, seed):
    """verl whitens inside, with the sample deviation; we whiten if that is set, with the population deviation."""
    answers = Answers(seed)
    _, returns = verl.compute_gae_advantage_return(
        answers.rewards, answers.values, answers.mask.double(), discount, trace
    )
    algo = AlgorithmConfig(advantage="gae", gamma=discount, gae_lambda=trace)
    found = ADVANTAGES["gae"](answers.packed(), algo)[1]
    torch.testing.assert_close(found, returns[answers.mask], atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("mine", "verls"), [("k1", "k1"), ("k2", "k2"), ("k3", "k3"), ("k3+", "k3+"), ("k1+", "k1+")]
)
def test_divergences_and_their_gradients_are_equal(mine, verls, seed):
    answers = Answers(seed)
    results = []
    for function in (KL[mine], lambda new, ref: verl.kl_penalty(new, ref, verls)):
        new = answers.new.clone().requires_grad_()
        value = function(new, answers.ref)
        value.sum().backward()
        results.append((value.detach(), new.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_the_critic_is_equal(seed):
    answers = Answers(seed)
    expected, _ = verl.compute_value_loss(
        vpreds=answers.new,
        returns=answers.returns,
        values=answers.values,
        response_mask=answers.mask.double(),
        cliprange_value=0.2,
        loss_agg_mode="token-mean",
    )
    batch = answers.packed()
    found = value_loss(answers.new[answers.mask], batch, 0.2).loss.mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
