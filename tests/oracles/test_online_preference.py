"""Online DPO and its kin: against the papers in plain Python, and as a part of a row of settings."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.algorithm import build
from lightrft.algorithms.online_preference import ONLINE_LOSSES, places
from lightrft.algorithms.requirements import build_for
from lightrft.config import AlgorithmConfig, Config, layers
from lightrft.testing import make_batch
from lightrft.utils.imports import resolve

ROW = AlgorithmConfig(advantage="none", loss="dpo")


def plain(name, group, *, beta, gamma=1.0):
    """The loss of a group of (log-probs, reference's, reward), from the papers: the mean over pairs of unequal rewards."""
    found = []
    for w in group:
        for l in group:  # noqa: E741
            if w[2] <= l[2]:
                continue
            sums = [sum(a) - sum(b) for a, b, _ in (w, l)]
            means = [sum(a) / len(a) for a, _, _ in (w, l)]
            ratios = [(sum(a) - sum(b)) / len(a) for a, b, _ in (w, l)]
            h = beta * (sums[0] - sums[1])
            odds = [m - math.log(1 - math.exp(m)) for m in means]
            found.append(
                {
                    "dpo": -math.log(1 / (1 + math.exp(-h))),
                    "ipo": (ratios[0] - ratios[1] - 1 / (2 * beta)) ** 2,
                    "hinge": max(0.0, 1 - h),
                    "simpo": -math.log(1 / (1 + math.exp(gamma - beta * (means[0] - means[1])))),
                    "orpo": -means[0] + beta * math.log(1 + math.exp(odds[1] - odds[0])),
                    "robust": (
                        -0.9 * math.log(1 / (1 + math.exp(-h))) + 0.1 * math.log(1 / (1 + math.exp(h)))
                    )
                    / 0.8,
                }[name]
            )
    return sum(found) / len(found) if found else 0.0


def drawn(seed, groups=3):
    """Groups of two to four responses of one to six tokens, some of which the policy did not choose."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 5, (groups,), generator=draw).tolist()
    lengths = torch.randint(1, 7, (sum(sizes),), generator=draw).tolist()
    total = sum(lengths)
    mask = torch.rand(total, generator=draw) < 0.8
    mask[torch.tensor(lengths).cumsum(0) - 1] = True
    ref, new = (-torch.rand(total, generator=draw, dtype=torch.float64) - 0.1 for _ in range(2))
    batch = make_batch(
        lengths,
        groups=[g for g, size in enumerate(sizes) for _ in range(size)],
        scores=torch.randint(0, 4, (len(lengths),), generator=draw).double(),
        mask=mask,
        ref=ref,
        weights=torch.zeros(total, dtype=torch.float64),
    )
    return batch, new


def in_words(batch, new):
    """(log-probs, reference's, reward) of each response, by group."""
    groups = {}
    for place, group in enumerate(batch.groups.tolist()):
        own = (batch.segments == place) & batch.mask
        groups.setdefault(group, []).append(
            (new[own].tolist(), batch.ref[own].tolist(), float(batch.scores[place]))
        )
    return groups


@pytest.mark.parametrize("name", ONLINE_LOSSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), beta=st.sampled_from([0.1, 0.7, 2.0]))
def test_each_group_has_the_loss_of_the_paper(name, seed, beta):
    batch, new = drawn(seed)
    terms = ONLINE_LOSSES[name](new, batch, ROW, beta=beta)
    for group, responses in in_words(batch, new).items():
        own = batch.groups[batch.segments] == group
        expected = torch.full_like(terms.loss[own], plain(name, responses, beta=beta))
        torch.testing.assert_close(terms.loss[own], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ONLINE_LOSSES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([1e3, float("nan")]))
def test_what_the_policy_did_not_choose_has_no_influence(name, seed, noise):
    batch, new = drawn(seed)
    found = []
    for disturb in (False, True):
        outside = ~batch.mask if disturb else torch.zeros_like(batch.mask)
        at = torch.where(outside, noise, new).requires_grad_()
        here = replace(batch, ref=torch.where(outside, noise, batch.ref))
        torch.where(batch.mask, ONLINE_LOSSES[name](at, here, ROW).loss, 0.0).sum().backward()
        found.append(at.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("scores", [[0.3, 0.3, 0.3], [0.1 + 0.2, 0.3, 0.3]])
@pytest.mark.parametrize("name", ONLINE_LOSSES)
def test_equal_rewards_have_no_loss_and_no_gradient(name, scores):
    """Equal but for rounding, too."""
    new = torch.full((6,), -0.5, dtype=torch.float64).requires_grad_()
    batch = make_batch(
        [2, 1, 3],
        groups=[5, 5, 5],
        scores=torch.tensor(scores, dtype=torch.float64),
        ref=torch.full((6,), -0.7),
    )
    terms = ONLINE_LOSSES[name](new, batch, ROW)
    terms.loss.sum().backward()
    assert terms.loss.tolist() == new.grad.tolist() == [0.0] * 6


def test_places_are_those_of_the_rewards_in_their_group():
    scores, groups = torch.tensor([0.3, 0.1 + 0.2, -1.0, 7.0, 7.0]), torch.tensor([1, 1, 1, 4, 4])
    assert places(scores, groups).tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--algorithm.advantage", "group_norm"], r"algorithm.advantage=group_norm is not read by .* Set algorithm.advantage=none"),
        (["--rollout.group-size", "1", "--algorithm.group-filter", "all"], r"rollout.group_size=1 leaves nothing to algorithm.loss=dpo, which learns from the order"),
        (["--algorithm.clip", "0.1", "0.1"], r"algorithm.clip=\[0.1, 0.1\] has no effect"),
        (["--algorithm.truncated", "mask"], r"algorithm.truncated=mask has no effect .* compares whole responses"),
        (["--algorithm.mismatch-correction", "truncate"], "algorithm.mismatch_correction=truncate has no effect"),
        (["--algorithm.kl-coefficient", "0.1", "--algorithm.kl", "k1", "--algorithm.kl-in", "reward"], "Set algorithm.kl_in=loss"),
        (["--algorithm.options", "beta", "-1"], r"algorithm.options.beta=-1: must be .* with algorithm.loss=dpo"),
        (["--algorithm.options", "gamma", "1"], r"algorithm.options.gamma: none of .* takes it"),
        (["--update.num-minibatches", "9", "--rollout.prompts-per-step", "8"], r"update.num_minibatches=9 is more than rollout.prompts_per_step=8"),
        (["--algorithm.response-filter", "random_responses", "--algorithm.options", "responses_to_learn_from", "1"], "leaves nothing to"),
        (["--algorithm.mismatch-correction", "truncate"], "compares whole responses. Set it to 'auto'"),
        (["--algorithm.overlong-buffer", "2"], "order of rewards alone. Set it to 0, or set algorithm.loss=clipped"),
        (["--constraint.cost", "length", "--constraint.limit", "1"], "constraint"),
    ],
)  # fmt: skip
def test_what_such_a_loss_does_not_read_is_refused(flags, told):
    with pytest.raises(ValueError, match=told):
        build_for(layers.load(["tiny", "online_dpo", *flags], Config), resolve)


def test_no_correction_may_be_said_aloud():
    """As run folders and capsules of an earlier default do."""
    flags = ["tiny", "online_dpo", "vllm", "--algorithm.mismatch-correction"]
    for said in ("none", "auto"):
        found = build_for(layers.load([*flags, said], Config), resolve)
        assert found.config.mismatch_correction == "none"


def test_a_reference_may_follow_without_a_penalty():
    """The losses that read one, in place of the divergence."""
    follow = ["--algorithm.reference-update-steps", "4"]
    assert build_for(layers.load(["tiny", "online_dpo", *follow], Config), resolve).needs_reference
    for loss in ("simpo", "orpo"):
        with pytest.raises(
            ValueError, match=r"reference_update_steps=4 has no effect with algorithm.kl_coefficient=0"
        ):
            build_for(layers.load(["tiny", "online_dpo", *follow, "--algorithm.loss", loss], Config), resolve)


@pytest.mark.parametrize("below", ["gspo", "dapo", "dr_grpo", "reinforce_pp_baseline"])
def test_the_layer_goes_on_top_of_others(below):
    build_for(
        layers.load(
            [
                "tiny",
                below,
                "online_dpo",
                "--algorithm.overlong-buffer",
                "0",
                "--update.num-minibatches",
                "1",
            ],
            Config,
        ),
        resolve,
    )


def test_it_says_what_it_needs():
    found = {name: build(replace(ROW, loss=name), resolve) for name in ONLINE_LOSSES}
    assert {name for name, row in found.items() if not row.needs_reference} == {"simpo", "orpo"}
    assert all(row.whole_groups for row in found.values())
    best = build(replace(ROW, response_filter="best_worst"), resolve)
    assert (best.together(8), found["dpo"].together(8)) == (2, 8)
    assert build(AlgorithmConfig(), resolve).together(8) == 1


def test_docstrings_and_options_are_those_of_the_offline_losses():
    assert "2305.18290" in ONLINE_LOSSES["dpo"].__doc__
    assert json.dumps(sorted(ONLINE_LOSSES)) == json.dumps(["dpo", "hinge", "ipo", "orpo", "robust", "simpo"])
