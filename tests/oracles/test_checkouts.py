"""Our formulas beside those of slime and prime-rl, which are no packages: skipped where $PEER_CHECKOUTS holds no checkout of them.

Tried with slime 624b824a and prime-rl 559b4477 (August 2026), see CONTRIBUTING.md.
"""

import asyncio
from types import SimpleNamespace

import pytest
import torch

from lightrft.algorithms.advantages import ADVANTAGES
from lightrft.algorithms.kl import KL
from lightrft.config import AlgorithmConfig
from tests.oracles.peers import HIGH, LOW, WIDTH, Answers, assert_equal, ours
from tests.published import checked_out

SLIME, SLIME_LOSS = "slime/utils/ppo_utils.py", "slime/backends/megatron_utils/loss.py"
PRIME = "src/prime_rl/trainer/rl/loss.py"
TOLERANCE = {"atol": 1e-6, "rtol": 0}


@pytest.fixture(autouse=True)
def _plain():
    """Theirs are compiled, which takes longer than all that is compared."""
    with torch.compiler.set_stance("force_eager"):
        yield


def slime(*names, file=SLIME):
    return checked_out("slime", file, names, {"torch": torch})


def prime(*names):
    return checked_out("prime-rl", PRIME, names, {"torch": torch, "LossOutputs": SimpleNamespace})


def mean(per_token, answers, average):
    """A loss of tokens (8, WIDTH) as one number."""
    kept = torch.where(answers.mask, per_token, 0.0)
    return (
        kept.sum() / answers.mask.sum() if average == "token" else (kept.sum(1) / answers.mask.sum(1)).mean()
    )


def differentiated(value, new, answers):
    value.backward()
    return value.item(), new.grad[answers.mask]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("average", ["token", "sequence"])
@pytest.mark.parametrize("dual", [None, 1.2])
def test_the_clipped_loss_is_slimes(dual, average, seed):
    (policy_loss,) = slime("compute_policy_loss")
    answers = Answers(seed)
    answers.new = answers.old + 3 * (answers.new - answers.old)
    new = answers.new.clone().requires_grad_()
    per_token, _ = policy_loss(answers.old - new, answers.advantages, LOW, HIGH, dual)
    mine = ours("clipped", answers, average, options={"dual_clip": dual or 0.0})
    assert_equal(mine, differentiated(mean(per_token, answers, average), new, answers))


@pytest.mark.parametrize("seed", range(3))
def test_gspo_is_slimes(seed):
    policy_loss, divergence = slime("compute_policy_loss", "compute_gspo_kl")
    answers = Answers(seed)
    new = answers.new.clone().requires_grad_()
    rows, old, masks = list(new), list(answers.old), list(answers.mask.double())
    kl = divergence(rows, old, rows, masks).view(8, WIDTH)
    per_token, _ = policy_loss(kl, answers.advantages, LOW, HIGH)
    mine = ours("sequence_clipped", answers, "sequence")
    assert_equal(mine, differentiated(mean(per_token, answers, "sequence"), new, answers))


@pytest.mark.parametrize("seed", range(3))
def test_cispo_is_slimes(seed):
    (cispo,) = slime("compute_cispo_loss")
    answers = Answers(seed)
    new = answers.new.clone().requires_grad_()
    per_token, _ = cispo(answers.old - new, new, answers.advantages, LOW, HIGH)
    assert_equal(
        ours("cispo", answers, "token"), differentiated(mean(per_token, answers, "token"), new, answers)
    )


@pytest.mark.parametrize("seed", range(3))
def test_off_policy_sequence_masking_is_slimes(seed):
    """slime compares with its old log-probs, which are the engine's where it is told to use those."""
    policy_loss, masked = slime("compute_policy_loss", "compute_opsm_mask")
    answers, limit = Answers(seed), 0.02
    new = answers.new.clone().requires_grad_()
    rows, masks = list(new.detach()), list(answers.mask.double())
    keep, _ = masked(
        SimpleNamespace(opsm_delta=limit), rows, list(answers.behavior), list(answers.advantages), masks
    )
    assert 0 < (keep == 0).sum() < answers.mask.sum()
    per_token, _ = policy_loss(answers.old - new, answers.advantages, LOW, HIGH)
    theirs = differentiated(mean(per_token * keep.view(8, WIDTH), answers, "token"), new, answers)
    assert_equal(ours("clipped", answers, "token", off_policy_mask_limit=limit), theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("correction", "name", "low"),
    [("truncate", "vanilla_tis_function", 0.0), ("mask", "icepop_function", 0.8)],
)
def test_weights_against_mismatch_are_slimes(correction, name, low, seed):
    (weigh,) = slime(name, file=SLIME_LOSS)
    (policy_loss,) = slime("compute_policy_loss")
    answers, args = Answers(seed), SimpleNamespace(tis_clip_low=low, tis_clip=1.2)
    new = answers.new.clone().requires_grad_()
    per_token, _ = policy_loss(answers.old - new, answers.advantages, LOW, HIGH)
    lists = {"train_log_probs": list(answers.old), "rollout_log_probs": list(answers.behavior)}
    weighed, *_ = weigh(args, pg_loss=per_token.flatten(), loss_masks=[], **lists)
    theirs = differentiated(mean(weighed.view(8, WIDTH), answers, "token"), new, answers)
    settings = {"mismatch_limit": 1.2, "mismatch_floor": low}
    mine = ours("clipped", answers, "token", mismatch_correction=correction, **settings)
    assert_equal(mine, theirs)
    assert mine[0] != pytest.approx(ours("clipped", answers, "token")[0], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_divergences_are_slimes(name, seed):
    """slime computes them in float32."""
    (divergence,) = slime("compute_approx_kl")
    answers = Answers(seed)
    torch.testing.assert_close(
        KL[name](answers.new, answers.ref).float(), divergence(answers.new, answers.ref, name), **TOLERANCE
    )


@pytest.mark.parametrize("seed", range(3))
def test_gae_is_slimes(seed):
    """Of answers of one length, since slime pads with zeros behind the last token."""
    (gae,) = slime("vanilla_gae")
    answers = Answers(seed)
    answers.mask = torch.ones_like(answers.mask)
    answers.lengths = [WIDTH] * 8
    answers.rewards = torch.zeros_like(answers.rewards)
    answers.rewards[:, -1] = answers.scores
    advantages, returns = gae(answers.rewards, answers.values, 0.9, 0.7)
    mine = ADVANTAGES["gae"](answers.packed(), AlgorithmConfig(advantage="gae", gamma=0.9, gae_lambda=0.7))
    torch.testing.assert_close(mine[0], advantages.flatten(), **TOLERANCE)
    torch.testing.assert_close(mine[1], returns.flatten(), **TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_dppo_is_that_of_prime_rl(seed):
    """Its loss is the ratio times the advantage, ours the log-prob weighed by the ratio: another value with the same gradient. Its square of the
    log-ratio is our loss `dro` without an advantage."""
    default, *_ = prime("default_loss_fn", "compute_importance_ratio_and_mismatch_kl", "_safe_mean")
    answers = Answers(seed)
    answers.old, answers.new = (-(x.abs() + 0.05) * answers.mask for x in (answers.old, answers.new))
    new, settings = answers.new.clone().requires_grad_(), {"dppo_mask_low": 0.05, "dppo_mask_high": 0.08}
    columns = {
        "trainer_logprobs": new[answers.mask],
        "inference_logprobs": answers.old[answers.mask],
        "advantages": answers.advantages[answers.mask],
        "loss_mask": torch.ones(int(answers.mask.sum()), dtype=torch.bool),
        "loss_weights": None,
    }
    config = SimpleNamespace(**settings, adv_tau=1.0, kl_tau=0.3)
    (default(SimpleNamespace(**columns), config).loss / answers.mask.sum()).backward()
    _, mine = ours("dppo", answers, "token", clip=(0.05, 0.08), options={"ratio_limit": 1e6})
    answers.advantages = torch.zeros_like(answers.advantages)
    _, leash = ours("dro", answers, "token", options={"beta": 2 * 0.3})
    torch.testing.assert_close(mine + leash, new.grad[answers.mask], **TOLERANCE)


@pytest.mark.parametrize("scores", [[0.0, 1.0, 1.0, 0.0], [0.25, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
def test_maxrl_is_that_of_prime_rl(scores):
    given = {}
    needs = {
        "torch": torch,
        "iter_trainable_traces": lambda traces: ((None, trace) for trace in traces),
        "assign_advantages": lambda trace, advantage: given.update({trace.number: advantage}),
    }
    file = "src/prime_rl/orchestrator/algo/max_rl.py"
    (score_group,) = checked_out("prime-rl", file, ("MaxRLAlgorithm.score_group",), needs)
    traces = [SimpleNamespace(number=n, reward=reward) for n, reward in enumerate(scores)]
    asyncio.run(score_group(None, traces))
    answers = Answers(0)
    answers.scores = torch.tensor(scores + scores, dtype=torch.float64)
    answers.rewards[torch.arange(8), torch.tensor(answers.lengths) - 1] = answers.scores
    mine = ADVANTAGES["maxrl"](answers.packed(), AlgorithmConfig(advantage="maxrl"))[0]
    ends = torch.tensor(answers.lengths).cumsum(0) - 1
    torch.testing.assert_close(
        mine[ends].float(), torch.tensor([given[n] for n in range(4)] * 2), **TOLERANCE
    )
