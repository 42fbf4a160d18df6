import re
from dataclasses import replace
from functools import partial

import pytest

from lightrft.algorithms.requirements import build_for
from lightrft.config import (
    AlgorithmConfig,
    Config,
    ConstraintConfig,
    CriticConfig,
    ReplayConfig,
    RewardConfig,
    RolloutConfig,
    TeacherConfig,
    UpdateConfig,
    layers,
)
from lightrft.utils.imports import resolve

USERS = """
from lightrft.algorithms.advantages import group_mean, reinforce
from lightrft.algorithms.losses import clipped

def siblings(batch, algo):
    return group_mean(batch, algo)

siblings.compares_responses = True

def alone(batch, algo):
    return reinforce(batch, algo)

def fresh(new, batch, algo):
    return clipped(new, batch, algo)

fresh.on_policy_only = True
"""
ONE = RolloutConfig(group_size=1)


@pytest.fixture
def users(tmp_path):
    (tmp_path / "mine.py").write_text(USERS)
    return lambda name: f"{tmp_path}/mine.py:{name}"


def build(**settings):
    return build_for(Config(**settings), resolve)


@pytest.mark.parametrize(
    "name", ["group_norm", "group_mean", "leave_one_out", "length_weighted_mean", "optimal_token_baseline"]
)
def test_what_compares_responses_needs_two_of_them(name):
    told = f"rollout.group_size=1: algorithm.advantage={name} compares responses to one prompt"
    with pytest.raises(ValueError, match=told):
        build(rollout=ONE, algorithm=AlgorithmConfig(advantage=name))
    build(rollout=RolloutConfig(group_size=2), algorithm=AlgorithmConfig(advantage=name))


def test_a_comparing_advantage_of_a_user_is_protected_too(users):
    with pytest.raises(ValueError, match="rollout.group_size=1: .*compares responses to one prompt"):
        build(rollout=ONE, algorithm=AlgorithmConfig(advantage=users("siblings")))
    build(rollout=ONE, algorithm=AlgorithmConfig(advantage=users("alone")))


def test_mixed_outcomes_need_two_responses():
    with pytest.raises(ValueError, match="group_filter=mixed_outcomes keeps groups in which rewards differ"):
        build(rollout=ONE, algorithm=AlgorithmConfig(advantage="reinforce", group_filter="mixed_outcomes"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gae_lambda": 0.5}, "algorithm.gae_lambda=0.5 has no effect with algorithm.advantage=group_norm"),
        ({"gamma": 0.5}, "set algorithm.advantage=reinforce"),
        ({"advantage": "reinforce", "gae_lambda": 0.5}, "set algorithm.advantage=gae"),
        ({"advantage": "none"}, "algorithm.advantage=none leaves everything to a teacher"),
        (
            {"advantage": "none", "teacher_coefficient": 1.0, "whiten": True},
            "algorithm.whiten=True has no effect with algorithm.advantage=none",
        ),
    ],
)
def test_settings_that_the_advantage_does_not_read_are_refused(settings, told):
    teacher = TeacherConfig(path="random:llama" if settings.get("teacher_coefficient") else "")
    with pytest.raises(ValueError, match=re.escape(told)):
        build(algorithm=AlgorithmConfig(**settings), teacher=teacher)


def test_an_advantage_of_a_user_may_read_every_setting(users):
    build(algorithm=AlgorithmConfig(advantage=users("alone"), gamma=0.5, gae_lambda=0.5))


def test_a_critic_is_refused_where_nothing_reads_its_values(users):
    for name in ("reinforce", users("alone")):
        with pytest.raises(ValueError, match="critic.value_clip=0.1 has no effect with algorithm.advantage"):
            build(algorithm=AlgorithmConfig(advantage=name), critic=CriticConfig(value_clip=0.1))
    build(algorithm=AlgorithmConfig(advantage="gae"), critic=CriticConfig(value_clip=0.1))


def test_a_teacher_alone_leaves_rewards_without_effect():
    distil = partial(
        build,
        algorithm=AlgorithmConfig(advantage="none", teacher_coefficient=1.0),
        teacher=TeacherConfig(path="random:llama"),
    )
    with pytest.raises(
        ValueError, match="rewards.normalise=scale has no effect with algorithm.advantage=none"
    ):
        distil(rewards=RewardConfig(normalise="scale"))
    with pytest.raises(ValueError, match="constraint.cost=length has no effect"):
        distil(constraint=ConstraintConfig(cost="length"))


LATE = [
    ({"replay": ReplayConfig(groups_per_step=2)}, "replay.groups_per_step"),
    ({"rollout": RolloutConfig(max_tokens_per_step=8)}, "rollout.max_tokens_per_step"),
    ({"rollout": RolloutConfig(overlap_rewards=True)}, "rollout.overlap_rewards"),
]


@pytest.mark.parametrize(("settings", "name"), LATE)
def test_a_loss_for_new_answers_only_learns_from_no_others(users, settings, name):
    for loss in ("policy_gradient", users("fresh")):
        with pytest.raises(ValueError, match=f"{name} learns from responses of earlier weights"):
            build(algorithm=AlgorithmConfig(loss=loss), **settings)
    build(algorithm=AlgorithmConfig(loss="clipped"), **settings)


def test_groups_that_are_left_over_are_older_too():
    rollout = RolloutConfig(extra_groups="carry_over")
    mixed = AlgorithmConfig(group_filter="mixed_outcomes")
    build(rollout=rollout, algorithm=mixed)
    with pytest.raises(
        ValueError, match="rollout.extra_groups=carry_over has no effect with algorithm.group_filter=all"
    ):
        build(rollout=rollout)
    with pytest.raises(ValueError, match="rollout.extra_groups learns from responses of earlier weights"):
        build(rollout=rollout, algorithm=replace(mixed, loss="policy_gradient"))


@pytest.mark.parametrize(("settings", "name"), LATE[1:])
def test_a_greedy_baseline_is_of_the_same_weights(settings, name):
    with pytest.raises(ValueError, match=f"{name} with algorithm.advantage=greedy_baseline"):
        build(algorithm=AlgorithmConfig(advantage="greedy_baseline"), **settings)


@pytest.mark.parametrize(
    ("layer", "flags", "told"),
    [
        (
            "pass_at_k",
            ["--rollout.group-size", "3"],
            r"algorithm.options.k=4: .* of the rollout.group_size=3",
        ),
        ("pass_at_k", ["--algorithm.options", "k", "2.5"], r"algorithm.options.k=2.5: .* a whole number"),
        ("pass_at_k", ["--algorithm.options", "k", "0"], r"algorithm.options.k=0: must be"),
        (
            "pass_at_k",
            ["--rewards.normalise", "shift_and_scale"],
            "rewards.normalise=shift_and_scale has no effect",
        ),
        (
            "maxrl",
            ["--rewards.normalise", "shift_and_scale"],
            "rewards.normalise=shift_and_scale has no effect",
        ),
        ("maxrl", ["--algorithm.overlong-buffer", "4"], "algorithm.overlong_buffer=4 has no effect"),
        ("a_star_po", ["--rewards.normalise", "shift_and_scale"], "rewards.normalise=shift_and_scale has no"),
        ("a_star_po", ["--algorithm.overlong-buffer", "4"], "algorithm.overlong_buffer=4 has no effect"),
        ("a_star_po", ["--algorithm.whiten", "true"], "algorithm.whiten=true: .* another number of it"),
        ("a_star_po", ["--algorithm.advantage-clip", "2"], "algorithm.advantage_clip=2: .* another number"),
        ("a_star_po", ["--algorithm.options", "beta", "0"], "algorithm.options.beta=0: must be above 0"),
        ("a_star_po", ["--algorithm.clip", "0.1", "0.1"], "algorithm.clip=.* has no effect"),
        (
            "a_star_po",
            ["--algorithm.reference-update-steps", "5"],
            "algorithm.reference_update_steps=5 with .* measured once, .* Set algorithm.reference_update_steps=0",
        ),
        (
            "a_star_po",
            ["--algorithm.advantage", "reinforce", "--algorithm.value-samples", "4"],
            "algorithm.value_samples=4 has no effect with algorithm.advantage=reinforce.* set algorithm.advantage=optimal_value",
        ),
        (
            "a_star_po",
            ["--algorithm.advantage", "reinforce"],
            "algorithm.advantage=reinforce: algorithm.loss=advantage_regression .* Set algorithm.advantage=optimal_value",
        ),
        (
            "a_star_po",
            ["--replay.groups-per-step", "8"],
            "replay.groups_per_step learns from responses of earlier weights .* algorithm.loss=advantage_regression",
        ),
        (
            "a_star_po",
            ["--tasks.train", "file", "1", "--tasks.stream-block", "100"],
            "tasks.stream_block=100 with algorithm.advantage=optimal_value: .* Set tasks.stream_block=0, or",
        ),
    ],
)
def test_what_would_end_a_run_at_its_first_step_is_refused_before_it(layer, flags, told):
    with pytest.raises(ValueError, match=told):
        build_for(layers.load(["tiny", layer, *flags], Config), resolve)


def test_values_of_the_reference_serve_late_responses_as_well():
    row = AlgorithmConfig(advantage="optimal_value", value_beta=0.3)
    for settings, _ in LATE[1:]:
        build(algorithm=row, **settings)


@pytest.mark.parametrize("loss", ["dro", "vespo", "aspo", "kl_cov", "m2po"])
def test_a_loss_of_ratios_needs_ratios_that_leave_one(loss):
    row = AlgorithmConfig(loss=loss)
    with pytest.raises(
        ValueError, match=f"algorithm.loss={loss} with update.num_minibatches=1 .*plain policy"
    ):
        build(algorithm=row)
    build(algorithm=row, update=UpdateConfig(num_minibatches=2))
    build(algorithm=row, replay=ReplayConfig(groups_per_step=1))


@pytest.mark.parametrize("loss", ["policy_gradient", "sapo", "topr", "dro", "vespo", "kl_cov", "m2po"])
def test_a_clip_that_the_loss_does_not_read_is_refused(loss):
    told = (
        rf"algorithm.clip=\[0.1, 0.2\] has no effect with algorithm.loss={loss}. .*set algorithm.loss=clipped"
    )
    with pytest.raises(ValueError, match=told):
        build(algorithm=AlgorithmConfig(loss=loss, clip=[0.1, 0.2]), update=UpdateConfig(num_minibatches=2))


def test_prompts_rest_only_where_responses_can_be_compared():
    with pytest.raises(ValueError, match="rollout.rest_passes=2 has no effect with rollout.group_size=1"):
        build(
            rollout=RolloutConfig(group_size=1, rest_passes=2),
            algorithm=AlgorithmConfig(advantage="reinforce"),
        )
    build(rollout=RolloutConfig(group_size=2, rest_passes=2))


@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        ([], "none"),
        (["--rollout.engine", "vllm"], "truncate"),
        (["--rollout.engine", "vllm_server", "--rollout.server.urls", "http://127.0.0.1:1"], "truncate"),
        (["--rollout.engine", "mine.py:Engine"], "truncate"),
        (["--rollout.engine", "vllm", "--rollout.top-k", "8"], "none"),
        (["--rollout.engine", "vllm", "--algorithm.mismatch-correction", "none"], "none"),
        (["--algorithm.mismatch-correction", "mask"], "mask"),
    ],
)
def test_the_mismatch_of_another_program_is_corrected_by_default(flags, meant):
    built = build_for(layers.load(["grpo", *flags], Config), resolve)
    assert built.config.mismatch_correction == meant
