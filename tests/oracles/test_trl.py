"""Our losses beside those of TRL's GRPOTrainer, on the same random answers. Skipped where TRL is not installed.

Its loss is a method that asks the trainer for settings and the log-probs of the model; here both are given to it.
"""

from collections import defaultdict
from types import MethodType, SimpleNamespace

import pytest
import torch

from tests.oracles.peers import HIGH, LOW, WIDTH, Answers, assert_equal, ours

GRPOTrainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed").GRPOTrainer
Accelerator = pytest.importorskip("accelerate").Accelerator


def theirs(answers, *, entropy=None, **settings):
    """TRL's loss of all answers as one batch, and its gradient."""
    new = answers.new.clone().requires_grad_()
    chosen = {
        "loss_type": "grpo",
        "epsilon_low": LOW,
        "epsilon_high": HIGH,
        "beta": 0.0,
        "importance_sampling_level": "token",
        "top_entropy_quantile": 1.0,
        "entropy_coef": 0.0,
        "delta": None,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "off_policy_mask_threshold": None,
        **settings,
    }
    trainer = SimpleNamespace(
        **chosen,
        args=SimpleNamespace(**chosen, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=Accelerator(cpu=True),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=WIDTH,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=chosen["entropy_coef"] != 0,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    entropies = new.square() if entropy is None else entropy(new)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (new, entropies, None)
    trainer.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
    trainer.get_gamma_weights = GRPOTrainer.get_gamma_weights
    trainer.get_high_entropy_mask = MethodType(GRPOTrainer.get_high_entropy_mask, trainer)
    inputs = {
        "prompt_ids": torch.zeros(8, 1, dtype=torch.int64),
        "prompt_mask": torch.ones(8, 1),
        "completion_ids": torch.zeros(8, WIDTH, dtype=torch.int64),
        "completion_mask": answers.mask.double(),
        "advantages": answers.advantages,
        "old_per_token_logps": answers.old,
        "ref_per_token_logps": answers.ref,
        "sampling_per_token_logps": answers.behavior,
        "num_items_in_batch": answers.mask.sum().double(),
    }
    value = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    value.backward()
    return value.item(), new.grad[answers.mask]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("average", "theirs_is"),
    [("sequence", "grpo"), ("token", "bnpo"), ("token", "dapo"), ("fixed", "dr_grpo")],
)
def test_the_clipped_loss_is_equal_in_every_average(average, theirs_is, seed):
    answers = Answers(seed)
    assert_equal(ours("clipped", answers, average), theirs(answers, loss_type=theirs_is))


@pytest.mark.parametrize("seed", range(3))
def test_the_ratio_of_an_answer_is_equal(seed):
    answers = Answers(seed)
    mine = ours("sequence_clipped", answers, "sequence")
    assert_equal(mine, theirs(answers, importance_sampling_level="sequence"))


@pytest.mark.parametrize("seed", range(3))
def test_cispo_is_equal_where_its_bound_is_counted_from_one(seed):
    """`epsilon_high` of TRL is the largest weight itself; our `clip` is relative to 1 everywhere."""
    answers = Answers(seed)
    mine = ours("cispo", answers, "token", clip=(1.0, 0.2))
    assert_equal(mine, theirs(answers, loss_type="cispo", epsilon_high=1.2))


@pytest.mark.parametrize("seed", range(3))
def test_sapo_is_equal(seed):
    answers = Answers(seed)
    assert_equal(ours("sapo", answers, "sequence"), theirs(answers, loss_type="sapo"))


@pytest.mark.parametrize("seed", range(3))
def test_vespo_is_equal(seed):
    answers = Answers(seed)
    names = {"k_pos": 2.5, "lambda_pos": 3.5, "k_neg": 1.5, "lambda_neg": 2.0}
    options = {"k_positive": 2.5, "lambda_positive": 3.5, "k_negative": 1.5, "lambda_negative": 2.0}
    expected = theirs(answers, loss_type="vespo", **{f"vespo_{name}": x for name, x in names.items()})
    assert_equal(ours("vespo", answers, "token", options=options), expected)


@pytest.mark.parametrize("seed", range(3))
def test_off_policy_sequence_masking_is_equal(seed):
    answers = Answers(seed)
    expected = theirs(answers, loss_type="bnpo", off_policy_mask_threshold=0.02)
    mine = ours("clipped", answers, "token", off_policy_mask_limit=0.02)
    assert_equal(mine, expected)
    assert mine[0] != ours("clipped", answers, "token")[0]


@pytest.mark.parametrize("seed", range(3))
def test_two_sided_clipping_is_dual_clip(seed):
    answers = Answers(seed)
    answers.new = answers.old + 3 * (answers.new - answers.old)
    mine = ours("clipped", answers, "token", options={"dual_clip": 1.5})
    assert_equal(mine, theirs(answers, loss_type="bnpo", delta=1.5))


@pytest.mark.parametrize("seed", range(3))
def test_divergence_and_entropy_bonus_are_equal(seed):
    answers = Answers(seed)
    mine = ours(
        "clipped",
        answers,
        "token",
        kl="k3",
        kl_coefficient=0.1,
        entropy=torch.square,
        entropy_coefficient=0.05,
    )
    assert_equal(mine, theirs(answers, loss_type="bnpo", beta=0.1, entropy=torch.square, entropy_coef=0.05))


@pytest.mark.parametrize("seed", range(3))
def test_uncertain_tokens_are_the_same_but_averaged_over_themselves(seed):
    """TRL goes on dividing by all tokens; the paper (2506.01939, eq. 6), and we, by the selected ones."""
    answers = Answers(seed)
    value, gradient = theirs(answers, loss_type="bnpo", top_entropy_quantile=0.2, entropy=torch.square)
    entropy = answers.new.square()[answers.mask]
    kept = int((gradient != 0).sum())
    all_tokens = int(answers.mask.sum())
    assert abs(kept - 0.2 * all_tokens) <= 1 + all_tokens * 0.1
    plain = ours("clipped", answers, "token")[1]
    selected = entropy >= entropy.topk(-(-all_tokens // 5)).values[-1]
    torch.testing.assert_close(gradient, torch.where(selected, plain, 0.0), atol=1e-7, rtol=0)
    assert value != 0


@pytest.mark.parametrize("seed", range(3))
def test_the_regression_on_optimal_advantages_is_equal(seed):
    module = pytest.importorskip("trl.experimental.a2po.a2po_trainer", reason="this TRL has no A*-PO")
    answers = Answers(seed)
    new = answers.new.clone().requires_grad_()
    trainer = SimpleNamespace(
        args=SimpleNamespace(beta2=0.3),
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_sequence_logps=lambda *_: (new * answers.mask).sum(1),
    )
    values = answers.scores.roll(1)
    inputs = {"input_ids": None, "attention_mask": None, "logits_to_keep": None}
    inputs |= {"ref_logps": (answers.ref * answers.mask).sum(1), "rewards": answers.scores, "v_star": values}
    loss = module.A2POTrainer.compute_loss(trainer, None, inputs)
    loss.backward()
    answers.advantages = (answers.scores - values)[:, None] * answers.mask
    mine = ours("advantage_regression", answers, "sequence", options={"beta": 0.3})
    assert_equal(mine, (loss.item(), new.grad[answers.mask]))
