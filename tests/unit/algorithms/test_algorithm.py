import math

import pytest
import torch

from lightrft.algorithms.algorithm import build
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch, tiny_trajectories
from lightrft.utils.imports import resolve

OWN = """
import torch
from lightrft.types import Terms

def scaled(new, batch, algo, *, scale, power=1.0):
    return Terms(-scale * batch.advantages**power * new)

def averaged(new, batch, algo):
    return Terms((batch.advantages * new).mean())

def score(batch, algo, shift=0.0):
    column = (batch.scores + shift)[batch.segments]
    return column, column

def alone(batch, algo):
    return batch.scores[batch.segments]

def above(group, least=0.5):
    return max(t.reward for t in group) >= least

def greedy(new, batch, algo, **anything):
    return Terms(-anything["scale"] * new)

def short(new):
    return Terms(new)

NUMBER = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return lambda name: f"{path}:{name}"


def algorithm(**settings):
    return build(AlgorithmConfig(**settings), resolve)


def test_the_default_row_runs_from_scores_to_a_loss():
    grpo = algorithm()
    batch = make_batch([1, 1], scores=[1.0, 0.0])
    grpo.compute_advantages(batch, lambda x: x)
    terms = grpo.loss(torch.tensor([-1.0, -2.0]), batch)
    torch.testing.assert_close(terms.loss, torch.tensor([-(0.5**0.5), 0.5**0.5]), atol=1e-5, rtol=0)
    assert grpo.group_filter(tiny_trajectories([(2, [1, 1])]))


def test_penalties_are_part_of_the_loss():
    row = algorithm(loss="policy_gradient", kl_coefficient=0.5, kl="k2", entropy_coefficient=0.25)
    batch = make_batch([1], advantages=[0.0], ref=[-3.0])
    assert row.loss(torch.tensor([-1.0]), batch, torch.tensor([2.0])).loss.tolist() == [0.5]


def test_an_algorithm_says_what_it_needs():
    plain, in_loss = algorithm(), algorithm(kl_coefficient=0.1)
    in_reward = algorithm(kl_coefficient=0.1, kl_in="reward", kl="k1")
    assert (plain.needs_reference, plain.needs_old) == (False, False)
    assert (in_loss.needs_reference, in_loss.needs_old) == (True, False)
    assert (in_reward.needs_reference, in_reward.needs_old) == (True, True)


def test_own_functions_get_the_options_they_take(own):
    row = algorithm(
        advantage=own("score"),
        loss=own("scaled"),
        group_filter=own("above"),
        options={"scale": 2.0, "shift": 1.0, "least": 2.0},
    )
    batch = make_batch([2], scores=[3.0])
    batch.advantages, _ = row.advantage(batch, row.config)
    assert batch.advantages.tolist() == [4.0, 4.0]
    assert row.loss(torch.tensor([-1.0, -0.5]), batch).loss.tolist() == [8.0, 4.0]
    assert not row.group_filter(tiny_trajectories([(2, [1, 1])]))


def test_a_function_that_takes_any_keyword_gets_all_options(own):
    row = algorithm(loss=own("greedy"), options={"scale": 3.0})
    assert row.loss(torch.tensor([-1.0]), make_batch([1])).loss.tolist() == [3.0]


def test_the_loss_of_an_own_function_is_zero_outside_the_mask(own):
    row = algorithm(loss=own("scaled"), options={"scale": 1.0})
    batch = make_batch([2], mask=[True, False], advantages=[1.0, torch.nan])
    assert row.loss(torch.tensor([-1.0, -1.0]), batch).loss.tolist() == [1.0, 0.0]


def test_a_misspelt_option_is_refused_with_a_suggestion(own):
    with pytest.raises(
        ValueError, match=r"algorithm.options.scael: none of .* takes it. Did you mean 'scale'\?"
    ):
        algorithm(loss=own("scaled"), options={"scael": 2.0})


def test_an_option_that_no_built_in_takes_is_refused():
    with pytest.raises(
        ValueError, match=r"algorithm.options.alpha: .*algorithm.loss=clipped.* They take: dual_clip"
    ):
        algorithm(options={"alpha": 2.0})


def test_a_missing_option_is_named(own):
    with pytest.raises(
        ValueError, match=r"own.py:scaled needs the option 'scale'. Set algorithm.options=\{scale: ...\}"
    ):
        algorithm(loss=own("scaled"))


def test_a_function_with_the_wrong_arguments_is_refused(own):
    with pytest.raises(
        ValueError, match=r"own.py:short must take \(new, batch, algo\) first; it takes \(new\)"
    ):
        algorithm(loss=own("short"))


def test_something_that_is_no_function_is_refused(own):
    with pytest.raises(ValueError, match=r"own.py:NUMBER is a int, not a function"):
        algorithm(loss=own("NUMBER"))


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"no loss named 'cliped'. Did you mean 'clipped'"):
        algorithm(loss="cliped")


def test_an_averaged_loss_is_refused(own):
    batch = make_batch([2], advantages=[1.0, 1.0])
    with pytest.raises(
        ValueError, match=r"own.py:averaged must return Terms with a loss of shape \(2,\), not averaged"
    ):
        algorithm(loss=own("averaged")).loss(torch.zeros(2), batch)


def test_an_advantage_without_returns_is_refused(own):
    with pytest.raises(ValueError, match=r"own.py:alone must return two tensors of shape \(2,\)"):
        algorithm(advantage=own("alone")).compute_advantages(make_batch([2]), lambda x: x)


def test_k1_in_the_loss_is_refused_because_it_pulls_nowhere():
    with pytest.raises(ValueError, match=r"algorithm.kl=k1 with algorithm.kl_in=loss.*Set algorithm.kl=k3"):
        algorithm(kl="k1", kl_coefficient=0.1)
    assert algorithm(kl="k1", kl_coefficient=0.1, kl_in="reward").needs_old


def test_advantages_are_whitened_then_clipped_then_picked_then_taught():
    row = algorithm(
        advantage="reinforce",
        whiten=True,
        advantage_clip=0.5,
        high_entropy_fraction=0.5,
        teacher_coefficient=2.0,
    )
    assert row.needs_old
    assert row.needs_teacher
    batch = make_batch(
        [1, 1, 1, 1],
        scores=[0.0, 0.0, 1.0, 1.0],
        entropy=[0.1, 0.9, 0.2, 0.8],
        old=[-1.0] * 4,
        teacher=[-1.0, -1.0, -1.0, -4.0],
    )
    row.compute_advantages(batch, lambda x: x)
    # Whitened to -1 and 1, clipped to -0.5 and 0.5, the two uncertain ones count double, the last is 3 too likely.
    assert batch.advantages.tolist() == [0.0, -1.0, 0.0, 1.0 - 6.0]


def test_a_teacher_in_the_loss_is_a_divergence_with_its_own_weight():
    row = algorithm(loss="policy_gradient", teacher_coefficient=0.5, teacher_in="loss")
    assert not row.needs_old
    batch = make_batch([2], advantages=[0.0, 0.0], teacher=[-3.0, -1.0], mask=[True, False])
    terms = row.loss(torch.tensor([-1.0, -5.0]), batch)
    assert terms.loss.tolist() == pytest.approx([0.5 * (math.exp(-2) + 1), 0.0])
    assert terms.metrics["teacher_kl"].tolist() == pytest.approx([math.exp(-2) + 1, 0.0])


def test_the_weight_of_the_divergence_is_steered_only_where_a_target_is_set():
    fixed, steered = algorithm(kl_coefficient=0.5), algorithm(kl_coefficient=0.5, kl_target=0.1)
    assert fixed.with_adapted_kl(0.9) is fixed
    assert steered.with_adapted_kl(None) is steered
    assert steered.with_adapted_kl(0.9).config.kl_coefficient == pytest.approx(0.51)
    batch = make_batch([1], advantages=[0.0], ref=[-3.0])
    loss = [
        row.loss(torch.tensor([-1.0]), batch).loss.item() for row in (steered, steered.with_adapted_kl(0.9))
    ]
    assert loss[1] == pytest.approx(1.02 * loss[0])


def test_the_entropy_bonus_acts_below_its_target_and_grows_there():
    """Skywork-OR1: 0.005 a step towards the target, and no bonus after a step above it."""
    row = algorithm(entropy_target=0.5)
    acting, held = [], []
    for entropy in (0.9, 0.4, 0.3, 0.5, 0.7, 0.2):
        row = row.with_adapted_entropy(entropy)
        acting.append(row.config.entropy_coefficient)
        held.append(row.entropy_held)
    assert held == pytest.approx([0.0, 0.005, 0.01, 0.005, 0.0, 0.005])
    assert acting == pytest.approx([0.0, 0.005, 0.01, 0.005, 0.0, 0.005])
    above = algorithm(entropy_target=0.5, entropy_coefficient=0.02, entropy_step=0.01).with_adapted_entropy(
        0.6
    )
    assert (above.entropy_held, above.config.entropy_coefficient) == pytest.approx((0.01, 0.0))
    fixed = algorithm(entropy_coefficient=0.02)
    assert fixed.with_adapted_entropy(0.1) is fixed
    assert row.with_adapted_entropy(None) is row
