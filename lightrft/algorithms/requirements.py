"""What the functions of an algorithm need of the other settings of a run, checked before weights load.

A function says so by attributes, a built-in one as well as one of a user's own file; see docs/algorithms.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from lightrft.algorithms.algorithm import Algorithm, Resolve, build
from lightrft.algorithms.online_preference import UNREAD
from lightrft.config import AlgorithmConfig, Config
from lightrft.config.checks import refuse_idle

CURES = {"gae_lambda": "advantage=gae", "gamma": "advantage=reinforce"}
"""Setting -> the choice that reads it, where that is not a comparing advantage."""


def build_for(config: Config, resolve: Resolve) -> Algorithm:
    """The algorithm of a whole run: `build`, and its needs checked against the other sections of `config`.

    ValueError, naming setting, value and cure, for settings that cannot work with the functions that were chosen, or have no effect.
    """
    algorithm = _with_correction(config, build(config.algorithm, resolve))
    _check_groups(config, algorithm)
    _check_preference(config, algorithm)
    _check_plain_rewards(config, algorithm)
    _check_reference(config.algorithm, algorithm)
    _check_advantage(config, algorithm)
    _check_late_answers(config, algorithm)
    _check_loss(config, algorithm)
    _check_optimal_values(config, algorithm)
    return algorithm


def _with_correction(config: Config, algorithm: Algorithm) -> Algorithm:
    """The algorithm with what algorithm.mismatch_correction=auto means for the engine of this run."""
    if config.algorithm.mismatch_correction != "auto":
        return algorithm
    roll = config.rollout
    differs = roll.is_another_program and not roll.samples_from_a_part and not algorithm.whole_groups
    row = replace(algorithm.config, mismatch_correction="truncate" if differs else "none")
    return replace(algorithm, config=row)


def correction_of(algorithm: Algorithm) -> str:
    """algorithm.mismatch_correction as it acts, never auto; empty where the loss reads none."""
    if algorithm.whole_groups:
        return ""
    kind = algorithm.config.mismatch_correction
    return "none" if kind == "auto" else kind


def check_remembered(config: Config, algorithm: Algorithm, left: Collection[str]) -> None:
    """ValueError if a checkpoint holds responses, of the kinds in `left`, that the present algorithm cannot learn from."""
    row, left = config.algorithm, set(left) - {"unanswered"}  # of which nothing was sampled
    if left and _says(algorithm, "loss", "on_policy_only"):
        raise ValueError(
            f"the checkpoint holds responses of earlier weights that were not learned from yet ({', '.join(sorted(left))}), and "
            f"algorithm.loss={row.loss} takes all responses for on-policy. Resume with algorithm.loss=clipped, or start a new run."
        )
    late = sorted({"prefetched", "unfinished"} & left)
    if late and _samples_a_baseline(algorithm):
        raise ValueError(
            f"the checkpoint holds responses of earlier weights that were not judged yet ({', '.join(late)}), and the greedy response "
            f"that algorithm.advantage={row.advantage} compares with would come from other weights. Resume with "
            "algorithm.advantage=reinforce, or start a new run."
        )


def _says(algorithm: Algorithm, kind: str, attribute: str) -> Any:
    return getattr(algorithm.functions[kind], attribute, None)


def _samples_a_baseline(algorithm: Algorithm) -> bool:
    """Whether each step samples what its responses are compared with, from the weights that sampled them."""
    return algorithm.needs_baseline and not algorithm.needs_optimal_values


def _check_groups(config: Config, algorithm: Algorithm) -> None:
    """Functions that compare responses need several to a prompt; groups that are all kept leave none over."""
    row, size = config.algorithm, config.rollout.group_size
    if size < 2 and _says(algorithm, "advantage", "compares_responses"):
        raise ValueError(
            f"rollout.group_size={size}: algorithm.advantage={row.advantage} compares responses to one "
            "prompt and needs at least 2. Set rollout.group_size=8, or algorithm.advantage=reinforce."
        )
    _check_subsets(row, algorithm, size)
    if size < 2:
        because, cure = (
            f"rollout.group_size={size}, which leaves nothing to compare",
            "set rollout.group_size=8",
        )
        refuse_idle("rollout", config.rollout, ["rest_passes"], because=because, cure=cure)
    if size < 2 and _says(algorithm, "group_filter", "compares_responses"):
        raise ValueError(
            f"algorithm.group_filter={row.group_filter} keeps groups in which rewards differ, and with rollout.group_size={size} there are "
            "none. Set rollout.group_size=8, or algorithm.group_filter=all."
        )
    if algorithm.keeps_all_groups:
        because, cure = (
            f"algorithm.group_filter={row.group_filter}",
            "set algorithm.group_filter=mixed_outcomes",
        )
        refuse_idle("rollout", config.rollout, ["extra_groups"], because=because, cure=cure)


def _check_subsets(row: AlgorithmConfig, algorithm: Algorithm, size: int) -> None:
    """An advantage that counts subsets of a group needs a whole number of responses that a group has."""
    name = _says(algorithm, "advantage", "subsets_of")
    if not name:
        return
    usual = inspect.signature(algorithm.functions["advantage"]).parameters[name].default
    count = row.options.get(name, usual)
    if count != int(count) or count > size:
        raise ValueError(
            f"algorithm.options.{name}={count:g}: algorithm.advantage={row.advantage} counts subsets of so many of the rollout.group_size={size} "
            "responses: a whole number, and no larger. Make it smaller, or the other larger."
        )


def _check_preference(config: Config, algorithm: Algorithm) -> None:
    """A loss that compares the responses of a group reads no advantage, and needs whole groups."""
    if not algorithm.whole_groups:
        return
    row, size = config.algorithm, config.rollout.group_size
    because = f"algorithm.loss={row.loss}, which learns from the order of the rewards in a group"
    other = "algorithm.loss=clipped"
    if row.advantage != "none":
        raise ValueError(
            f"algorithm.advantage={row.advantage} is not read by {because}. Set algorithm.advantage=none, or {other}."
        )
    if size < 2:
        raise ValueError(
            f"rollout.group_size={size} leaves nothing to {because}. Set rollout.group_size=8, or {other}."
        )
    if row.options.get("responses_to_learn_from", 2) < 2:
        raise ValueError(
            f"algorithm.options.responses_to_learn_from=1 leaves nothing to {because}. Set it to 2 or more, or {other}."
        )
    parts, prompts = config.update.num_minibatches, config.rollout.prompts_per_step
    if parts > prompts:
        raise ValueError(
            f"update.num_minibatches={parts} is more than rollout.prompts_per_step={prompts}, and no group is divided for {because}. Set "
            f"update.num_minibatches={prompts} or less."
        )
    refuse_idle("constraint", config.constraint, because=because, cure=f"set {other}")
    for name, why in UNREAD.items():
        if name == "mismatch_correction" and row.mismatch_correction == "none":
            continue  # what `auto` means here, said aloud
        refuse_idle("algorithm", row, [name], because=f"{because}: {why}", cure=f"set {other}")
    for name, place, on in (
        ("kl_in", "reward", row.kl_coefficient != 0),
        ("teacher_in", "advantage", row.teacher_coefficient != 0),
    ):
        if on and getattr(row, name) == place:
            raise ValueError(f"algorithm.{name}={place} is not seen by {because}. Set algorithm.{name}=loss.")


def _check_plain_rewards(config: Config, algorithm: Algorithm) -> None:
    """An advantage that reads rewards as they are given has no use for what changes them before."""
    if _says(algorithm, "advantage", "plain_rewards"):
        because = f"algorithm.advantage={config.algorithm.advantage}, which reads rewards as they are given"
        cure = "set algorithm.advantage=group_norm"
        refuse_idle("rewards", config.rewards, ["scale", "normalise"], because=because, cure=cure)
        refuse_idle("constraint", config.constraint, because=because, cure=cure)
        refuse_idle("algorithm", config.algorithm, ["overlong_buffer", "kl_in"], because=because, cure=cure)


def _check_reference(row: AlgorithmConfig, algorithm: Algorithm) -> None:
    """A reference that nothing reads follows nobody."""
    if not algorithm.needs_reference:
        because = f"algorithm.kl_coefficient={row.kl_coefficient:g}"
        cure = "set algorithm.kl_coefficient, e.g. 0.01"
        refuse_idle("algorithm", row, ["reference_update_steps"], because=because, cure=cure)


def _check_advantage(config: Config, algorithm: Algorithm) -> None:
    """Settings that the advantage does not read, and a critic or a teacher that it needs or has no use for."""
    row = config.algorithm
    because = f"algorithm.advantage={row.advantage}"
    taught = row.teacher_coefficient != 0 and row.teacher_in == "advantage"
    if _says(algorithm, "advantage", "needs_teacher") and not taught and not algorithm.whole_groups:
        raise ValueError(
            f"{because} leaves everything to a teacher, and none enters the advantage. Set teacher.path, "
            "algorithm.teacher_coefficient=1 and algorithm.teacher_in=advantage, or another algorithm.advantage."
        )
    if algorithm.needs_baseline and config.judge.against == "siblings":
        raise ValueError(
            f"{because} compares with a response that is judged alone, and judge.against=siblings judges by other responses. Set "
            "judge.against=target or none, or another algorithm.advantage."
        )
    for name in _says(algorithm, "advantage", "unused_settings") or ():
        cure = f"set algorithm.{CURES.get(name, 'advantage=group_norm')}"
        refuse_idle("algorithm", row, [name], because=because, cure=cure)
    if not algorithm.needs_critic:
        refuse_idle("critic", config.critic, because=because, cure="set algorithm.advantage=gae")
    elif config.constraint.cost and (algorithm.needs_baseline or algorithm.needs_turns):
        raise ValueError(
            f"{because} reads values beside baselines or the rewards of turns, and with constraint.cost={config.constraint.cost} it is asked once "
            "for the reward and once for the cost, of which there are values alone. Leave constraint.cost out."
        )
    elif not config.constraint.cost:
        refuse_idle(
            "critic", config.critic, ["cost_output"], because="constraint.cost=''", cure="set constraint.cost"
        )
    if _says(algorithm, "advantage", "ignores_rewards") or algorithm.needs_parts:
        cure = "set algorithm.advantage=group_norm"
        refuse_idle("rewards", config.rewards, ["scale", "normalise"], because=because, cure=cure)
        refuse_idle("constraint", config.constraint, because=because, cure=cure)


def _check_late_answers(config: Config, algorithm: Algorithm) -> None:
    """Responses of older weights need a loss that knows their ratio, and a baseline of the same weights."""
    row = config.algorithm
    late = _late(config)
    name = next((name for name, used in late.items() if used), "")
    if name and _samples_a_baseline(algorithm):
        raise ValueError(
            f"{name} with algorithm.advantage={row.advantage}: the greedy response would come from other weights than those "
            f"it is compared with. Leave {name} out, or set algorithm.advantage=reinforce."
        )
    if not _says(algorithm, "loss", "on_policy_only"):
        return
    name = next((name for name, used in _reused(config).items() if used), "")
    if name:
        raise ValueError(
            f"{name} learns from responses of earlier weights (off-policy), and algorithm.loss={row.loss} takes all responses for on-policy. "
            "Set algorithm.loss=clipped."
        )


def _late(config: Config) -> dict[str, bool]:
    """Settings with which responses come from older weights while they are sampled -> whether they are on."""
    return {
        "rollout.max_tokens_per_step": config.rollout.max_tokens_per_step > 0,
        "rollout.overlap_rewards": config.rollout.overlap_rewards,
        "rollout.max_staleness": config.rollout.max_staleness > 0,
    }


def _reused(config: Config) -> dict[str, bool]:
    """All settings with which responses of older weights are learned from -> whether they are on."""
    return {
        "replay.groups_per_step": config.replay.groups_per_step > 0,
        "rollout.extra_groups": config.rollout.extra_groups == "carry_over",
        **_late(config),
    }


def _check_loss(config: Config, algorithm: Algorithm) -> None:
    """Settings that the loss does not read, and a loss that is the plain policy gradient where no ratio leaves 1."""
    row, update = config.algorithm, config.update
    because = f"algorithm.loss={row.loss}"
    keeps, reads = config.rollout.denoise.keep_means, _says(algorithm, "loss", "needs_moved")
    if reads and not keeps:
        raise ValueError(
            f"{because} compares with what a diffusion pipeline predicted of a picture when it was drawn, and rollout.denoise.keep_means=false. Set "
            "rollout.denoise.keep_means=true and rollout.denoise.noise=match (layer diffusion_nft), or algorithm.loss=clipped."
        )
    if keeps and not reads:
        raise ValueError(
            f"rollout.denoise.keep_means=true has no effect with {because}, which does not read it. Leave it out, or set algorithm.loss=diffusion_nft."
        )
    unused = list(_says(algorithm, "loss", "unused_settings") or ())
    for name in unused:
        refuse_idle("algorithm", row, [name], because=because, cure="set algorithm.loss=clipped")
    if update.epochs * update.num_minibatches > 1 or any(_reused(config).values()):
        return
    if _says(algorithm, "loss", "needs_updates"):
        raise ValueError(
            f"{because} with update.num_minibatches={update.num_minibatches} and update.epochs={update.epochs}: with one update per step of new "
            "responses no ratio leaves 1, and it is the plain policy gradient. Set update.num_minibatches=2 or more, or "
            "algorithm.loss=policy_gradient."
        )


def _check_optimal_values(config: Config, algorithm: Algorithm) -> None:
    """Values are of one reference, and what is fitted to them is the advantage as it is."""
    row = config.algorithm
    if not algorithm.needs_optimal_values:
        because, cure = f"algorithm.advantage={row.advantage}", "set algorithm.advantage=optimal_value"
        refuse_idle("algorithm", row, ["value_samples", "value_beta"], because=because, cure=cure)
    elif config.tasks.stream_block:
        raise ValueError(
            f"tasks.stream_block={config.tasks.stream_block} with algorithm.advantage={row.advantage}: the values of all prompts are measured before "
            "the first step, and streamed ones are not known then. Set tasks.stream_block=0, or algorithm.advantage=reinforce."
        )
    elif row.reference_update_steps:
        raise ValueError(
            f"algorithm.reference_update_steps={row.reference_update_steps} with algorithm.advantage={row.advantage}: the values of prompts are "
            "measured once, of the model the run begins with, and the reference would become another. Set "
            "algorithm.reference_update_steps=0, or algorithm.advantage=reinforce."
        )
    if not _says(algorithm, "loss", "fits_optimal_values"):
        return
    because = f"algorithm.loss={row.loss} fits log-ratios to the reward minus the optimal value"
    if not algorithm.needs_optimal_values:
        raise ValueError(
            f"algorithm.advantage={row.advantage}: {because}. Set algorithm.advantage=optimal_value, or algorithm.loss=clipped."
        )
    changed = {
        "algorithm.whiten=true": row.whiten,
        f"algorithm.advantage_clip={row.advantage_clip:g}": row.advantage_clip,
        f"algorithm.high_entropy_fraction={row.high_entropy_fraction:g}": row.high_entropy_fraction < 1,
        "algorithm.teacher_in=advantage": algorithm.needs_teacher and row.teacher_in == "advantage",
    }
    name = next((name for name, on in changed.items() if on), "")
    if name:
        raise ValueError(
            f"{name}: {because}, and this would make another number of it. Leave it out, or set algorithm.loss=clipped."
        )
