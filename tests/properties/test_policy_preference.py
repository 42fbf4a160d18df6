"""What holds for every loss that teaches a policy what is better, one's own by import path too."""

from __future__ import annotations

import math
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightrft.algorithms.policy_preference import POLICY_LOSSES
from lightrft.algorithms.preference import COUNTS, group_mean, pairs
from lightrft.config import DPOConfig, ModelConfig, OptimizerConfig, UpdateConfig
from lightrft.datasets.comparisons import Side, siblings
from lightrft.models.source import Source
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import keep_double
from lightrft.trainer.batching import Batching
from lightrft.trainer.offline import OfflineTrainer
from lightrft.trainer.optimize import optimize
from lightrft.trainer.policy_preferences import OUTPUT, PolicyPreferences
from lightrft.trainer.reference import Referee
from lightrft.types import Prompt
from lightrft.utils.interrupt import Interrupt
from tests.properties.comparisons import (
    assert_equal_grades_have_no_loss_and_no_gradient,
    assert_order_and_company_change_nothing,
)


def mine(values, grades, groups, *, power=2.0):
    """A loss as a user writes it."""
    better, worse = pairs(grades, groups)
    return group_mean((1 - values[better] + values[worse]).abs() ** power, better, groups)


LOSSES = {**POLICY_LOSSES, "mine": mine}
COMPARING = [name for name in LOSSES if name != "kto"]
numbers = st.floats(-5, -0.0078125, width=32)
grades = st.sampled_from([-1.0, 0.0, 1.0, 2.0, math.nan])
drawn_groups = st.lists(st.lists(st.tuples(numbers, grades), min_size=1, max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize("name", LOSSES)
@given(drawn=drawn_groups, seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_order_and_company_change_nothing(name, drawn, seed):
    assert_order_and_company_change_nothing(LOSSES[name], drawn, seed)


@pytest.mark.parametrize("name", COMPARING)
@given(values=st.lists(numbers, min_size=1, max_size=4), grade=grades)
@settings(max_examples=25, deadline=None)
def test_equal_grades_have_no_loss_and_no_gradient(name, values, grade):
    assert_equal_grades_have_no_loss_and_no_gradient(LOSSES[name], values, grade)


@given(one=numbers, other=numbers)
@settings(max_examples=25, deadline=None)
def test_swapped_sides_negate_the_difference_and_half_smoothed_labels_prefer_neither(one, other):
    values, names = torch.tensor([one, other], dtype=torch.float64), torch.tensor([3, 3])
    sides = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    p, q = (torch.exp(-LOSSES["dpo"](values, right, names, beta=0.5)) for right in sides)
    assert_close(p + q, torch.ones(2, dtype=torch.float64), atol=1e-12, rtol=0)
    p, q = (LOSSES["dpo"](values, right, names, label_smoothing=0.5) for right in sides)
    assert_close(p, q, atol=1e-12, rtol=0)
    leaf = torch.full((2,), one, dtype=torch.float64, requires_grad=True)
    LOSSES["dpo"](leaf, sides[0], names, label_smoothing=0.5).sum().backward()
    assert not leaf.grad.any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@given(one=numbers, other=numbers)
@settings(max_examples=25, deadline=None)
def test_a_beta_of_nearly_0_leaves_ln_2_and_half_of_beta_as_gradient(smoothing, one, other):
    leaf, beta = torch.tensor([one, other], dtype=torch.float64, requires_grad=True), 1e-7
    found = LOSSES["dpo"](
        leaf, torch.tensor([1.0, 0.0]), torch.tensor([3, 3]), beta=beta, label_smoothing=smoothing
    )
    assert_close(found, torch.full((2,), math.log(2), dtype=torch.float64), atol=1e-5, rtol=0)
    found.mean().backward()
    half = 0.5 - smoothing
    assert_close(leaf.grad / beta, torch.tensor([-half, half], dtype=torch.float64), atol=1e-5, rtol=0)


# What a whole update makes of it.


def prompts(shape):
    draw = random.Random(0)

    def tokens(least, most):
        return [draw.randrange(1, 250) for _ in range(draw.randint(least, most))]

    def side(grade):
        said = tokens(1, 20)
        return Side(said, {OUTPUT: grade}, [True] * len(said))

    return [
        Prompt(f"p{n}", tokens(3, 20), [], [side(g) for g in rated], "x") for n, rated in enumerate(shape)
    ]


SHAPE = [[1.0, 0.0], [1.0, 0.0], [2.0, 1.0, 0.0], [1.0, -1.0]]
PLACES = range(len(SHAPE))


def models():
    """The policy, moved a little away from its reference, and that."""
    policy, reference = (Source(ModelConfig(path="random:llama")).full().double() for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return policy, reference


def update(name, tokens=10_000, *, share_prompts=True, order=None, twice=(), places=PLACES, sft=0.0):
    """Loss and gradients of one update on the prompts at `places` of `SHAPE`; those at `twice` are drawn twice."""
    module, frozen = models()
    loss = LOSSES[name]
    config = DPOConfig(sft_coefficient=sft)
    objective = PolicyPreferences(config, partial(loss))
    batching = Batching(
        UpdateConfig(tokens_per_micro_batch=tokens, share_prompts=share_prompts),
        World(), torch.device("cpu"), whole_groups=True, outputs=[OUTPUT],
    )  # fmt: skip
    policy, reference = (SingleTrainable(m, OptimizerConfig(learning_rate=0.0), 1) for m in (module, frozen))
    asked = prompts(SHAPE)
    answers = [t for n in places for t in siblings(asked[n], n)]
    answers += [t for n in twice for t in siblings(asked[n], 100 + n)]
    if order is not None:
        random.Random(order).shuffle(answers)
    told = {}
    if objective.needs_reference:
        told = Referee(objective, policy, reference, batching, Interrupt(World().max)).score(
            answers, first=False
        )
    gradients = {}

    def keep(index, norm):
        gradients.update({n: p.grad.clone() for n, p in module.named_parameters()})

    (metrics,) = optimize(
        policy,
        batching.updates(answers, seed=0),
        partial(objective.loss, policy),
        averaging=objective.averaging,
        batching=batching,
        before_update=keep,
    )
    return metrics | told, gradients


@pytest.fixture(scope="module")
def whole():
    with keep_double():
        return {name: update(name, sft=0.3) for name in LOSSES}


@pytest.mark.parametrize("changed", [{"tokens": 60}, {"tokens": 1}, {"share_prompts": False}, {"order": 1}])
@pytest.mark.parametrize("name", LOSSES)
def test_neither_packing_nor_order_changes_loss_or_gradient(whole, name, changed):
    """z0 of kto is the same too, whatever fits a micro-batch."""
    with keep_double():
        metrics, gradients = update(name, sft=0.3, **changed)
    for key in ("loss", "pairs/accuracy", "logp_shift/chosen", "logp_shift/rejected", "kto/divergence"):
        if key in whole[name][0]:
            assert metrics[key] == pytest.approx(whole[name][0][key], abs=2e-6), key
    for key, gradient in whole[name][1].items():
        assert_close(gradients[key], gradient, atol=1e-5, rtol=0, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_a_pair_that_comes_twice_weighs_two(name):
    with keep_double():
        once, alone = update(name)[0]["loss"], update(name, places=[0])[0]["loss"]
        assert update(name, twice=[0])[0]["loss"] == pytest.approx((4 * once + alone) / 5, abs=1e-6)


def test_the_first_step_is_refused_if_policy_and_reference_differ():
    policy, reference = (SingleTrainable(m, OptimizerConfig(), 1) for m in models())
    objective = PolicyPreferences(DPOConfig(), partial(POLICY_LOSSES["ipo"]))
    batching = Batching(UpdateConfig(), World(), torch.device("cpu"), whole_groups=True, outputs=[OUTPUT])
    answers = [t for n, p in enumerate(prompts(SHAPE)) for t in siblings(p, n)]
    with keep_double():
        same = Referee(objective, reference, reference, batching, Interrupt(World().max))
        assert same.score(answers, first=True) == {}
        other = Referee(objective, policy, reference, batching, Interrupt(World().max))
        with pytest.raises(ValueError, match=r"first step is .*, and .* must be 25\.000000"):
            other.score(answers, first=True)


def test_a_falling_log_prob_of_the_better_responses_is_told(caplog):
    policy, reference = (SingleTrainable(m, OptimizerConfig(), 1) for m in models())
    objective = PolicyPreferences(DPOConfig(), partial(POLICY_LOSSES["dpo"]))
    blank = dummy_answer(prompts(SHAPE)[0])
    batching = Batching(UpdateConfig(), World(), torch.device("cpu"), blank, True, [OUTPUT])
    referee = Referee(objective, policy, reference, batching, Interrupt(World().max))
    for step in range(9):
        referee.watch({"logp_shift/chosen": -0.1 * (step + 1)})
    assert not caplog.records
    resumed = Referee(objective, policy, reference, batching, Interrupt(World().max))
    resumed.load(referee.state())  # a resume remembers the steps before it
    referee = resumed
    referee.watch({"logp_shift/chosen": -1.5})
    assert (
        "less likely than they were for the reference, by 1.50 nats now, in each of 10 steps" in caplog.text
    )
    for step in range(20):
        referee.watch({"logp_shift/chosen": 0.1 * step})
    assert len(caplog.records) == 1


def held_out(loss):
    """A trainer of the small models above with all it needs to look at held-out prompts, which hold no media."""
    objective = PolicyPreferences(DPOConfig(loss=loss), partial(LOSSES[loss]))
    batching = Batching(UpdateConfig(), World(), torch.device("cpu"), whole_groups=True, outputs=[OUTPUT])
    policy, reference = (SingleTrainable(m, OptimizerConfig(), 1) for m in models())
    interrupt = Interrupt(World().max)
    return OfflineTrainer(
        config=objective.config, objective=objective, world=World(), memory_plan=None, batching=batching, model=policy,
        prompts=SimpleNamespace(open=lambda prompt: prompt), held_out=[], journal=None, interrupt=interrupt,
        referee=Referee(objective, policy, reference, batching, interrupt),
    )  # fmt: skip


def test_held_out_responses_are_desirable_above_the_divergence_and_not_above_zero(monkeypatch):
    trainer, asked = held_out("kto"), prompts(SHAPE)
    answers = [t for n, p in enumerate(asked) for t in siblings(p, n)]
    assert trainer.divergence(asked) == pytest.approx(trainer.referee.divergence(answers), abs=1e-6)
    monkeypatch.setattr("lightrft.trainer.offline.OPEN_AT_ONCE", 1)
    assert trainer.divergence(asked) == pytest.approx(trainer.referee.divergence(answers), abs=1e-6)
    # Log-ratios of 0 lie below 0.5, which is right for the one response of a negative grade alone, and above -0.5.
    trainer.referee.policy = trainer.model = trainer.referee.reference
    for divergence, right in ((0.5, 1), (-0.5, 5)):
        monkeypatch.setattr(trainer, "divergence", lambda _, found=divergence: found)
        counts = dict(zip(COUNTS, trainer.examined(asked).tolist(), strict=True))
        assert (counts["signed"], counts["right_sign"]) == (6, right)


def test_a_loss_of_differences_has_no_divergence_on_held_out_prompts():
    assert math.isnan(held_out("dpo").divergence(prompts(SHAPE)))
