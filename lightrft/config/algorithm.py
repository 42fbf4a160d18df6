"""The algorithm: a row of settings over the functions of lightrft/algorithms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.ranges import check_ranges

EXACT = "exact"
"""The choice of `algorithm.kl` that is no estimate from what was sampled."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """The algorithm: advantage, loss, clipping, KL and filters. Defaults: GRPO without KL."""

    advantage: str = "group_norm"
    """group_norm, group_norm_by_part, group_norm_by_turn, group_mean, leave_one_out, length_weighted_mean, optimal_token_baseline, maxrl, pass_at_k, reinforce,
    greedy_baseline, optimal_value (A*-PO), gae (with a critic), none (with a teacher, or a loss that compares responses); or an import path."""
    gamma: float = 1.0
    """For advantages reinforce and gae: what a reward is worth one chosen token earlier (discount), from 0 to 1."""
    gae_lambda: float = 1.0
    """For advantage gae: 0 trusts the critic, 1 the rewards that came."""
    value_samples: int = 8
    """For advantage optimal_value: responses of the model that the run begins with, from which the value of each training prompt is measured
    before the first step."""
    value_beta: float = 0.5
    """For advantage optimal_value: the value is beta * log(mean of exp(reward / beta)); near 0 the largest reward, large their mean."""
    advantage_clip: float = 0.0
    """Advantages are clipped to [-x, x], after whitening; 0: not."""
    loss: str = "clipped"
    """clipped, policy_gradient, sequence_clipped, sequence_clipped_token, geometric, cispo, sapo, cpgd, dppo, dcpo, topr, dro, aspo, vespo, clip_cov, kl_cov, m2po, advantage_regression (A*-PO, with
    advantage=optimal_value); dpo, robust, ipo, hinge, simpo, orpo
    on the responses of a group as their rewards order them (online DPO, with advantage=none); or an import path."""
    clip: list[float] = field(default_factory=lambda: [0.2, 0.2])
    """How far the ratio may fall below 1 and rise above it before its gradient stops; its logarithm for loss geometric."""
    average: Literal["token", "sequence", "fixed"] = "sequence"
    """token: all tokens weigh the same. sequence: all responses do. fixed: divide by rollout.max_tokens (Dr.GRPO)."""
    group_filter: str = "all"
    """Which groups to learn from: all, mixed_outcomes (dynamic sampling of DAPO: zero-variance groups, whose rewards are all equal, are
    sampled anew; with group_norm_by_part those whose normalised parts add up to 0), or an import path."""
    response_filter: str = "all"
    """Which responses of a group to learn from: all, best_random, best_worst (PF-PPO), random_responses, after all have counted in its baseline;
    max_variance (PODS), which are then compared among themselves; or an import path."""
    high_entropy_fraction: float = 1.0
    """Learn only from this fraction of the tokens, those with the highest entropy at sampling; 1 minus the quantile of other trainers. 1: all."""
    high_entropy_scope: Literal["batch", "sequence"] = "batch"
    """What high_entropy_fraction is a fraction of: the tokens of a step on all ranks, or those of each response."""
    kl: Literal["k1", "k2", "k3", "k1+", "k3+", "exact"] = "k3"
    """Estimator of the divergence from the reference model; + means with the gradient of k2; exact: in closed form, of diffusion models only."""
    kl_coefficient: float = 0.0
    """Weight of the divergence from the reference; 0 loads no reference model."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the divergence enters."""
    kl_target: float = 0.0
    """Target of the divergence per token, to which kl_coefficient adapts step by step; 0: the coefficient is fixed."""
    kl_gain: float = 0.1
    """With kl_target: per step, kl_coefficient *= 1 + kl_gain * clip(kl / kl_target - 1, -0.2, 0.2)."""
    reference_update_steps: int = 0
    """The reference follows the policy every so many steps; 0: it stays the model the run began with."""
    reference_update_rate: float = 1.0
    """How far it follows: 1 becomes the policy; small, with reference_update_steps=1, is a moving average."""
    teacher_coefficient: float = 0.0
    """Weight of the divergence from teacher.path, per token (on-policy distillation); 0 loads no teacher."""
    teacher_in: Literal["advantage", "loss"] = "advantage"
    """Where the teacher enters: log teacher - log policy is added to the advantage, or its divergence (k3+) to the loss."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus in the loss; with entropy_target the one that it begins with."""
    entropy_target: float = 0.0
    """Entropy per token, nats, that the bonus holds: it acts in the step after one at or below it, and its coefficient moves by entropy_step
    towards that (Skywork-OR1). 0: the coefficient is fixed."""
    entropy_step: float = 0.005
    """With entropy_target: what the coefficient gains after a step below the target, and loses after one above it; never below 0."""
    router_aux_coefficient: float = 0.0
    """Mixtures of experts: weight of the load-balancing (auxiliary) loss of the routers; -1: the model's own, router_aux_loss_coef of its
    configuration. 0: none."""
    truncated: Literal["keep", "mask"] = "keep"
    """Responses truncated at rollout.max_tokens: learn from them as from others, or mask their tokens in the loss."""
    whiten: bool = False
    """Normalise advantages over the batch: mean 0, deviation 1 over all tokens of all ranks."""
    reward_clip: float = 0.0
    """Rewards are clipped to [-x, x] before advantages; 0: not."""
    overlong_buffer: int = 0
    """The last so many tokens before rollout.max_tokens cost more and more of overlong_penalty; 0: no penalty for length."""
    overlong_penalty: float = 1.0
    """What a response of rollout.max_tokens tokens loses of its reward, if overlong_buffer is set."""
    mismatch_correction: Literal["none", "truncate", "mask", "reject"] = "none"
    """Importance weights against the mismatch of engine and trainer: none; truncate: p_trainer / p_engine, at most mismatch_limit (TIS);
    mask: the same with 0 beyond the limits (IcePop per token, MIS per sequence); reject: 1 with 0 beyond the limits (rejection sampling)."""
    mismatch_level: Literal["token", "sequence", "sequence_mean"] = "token"
    """A ratio per token; the product over the response for all its tokens; or their geometric mean, which no length makes extreme."""
    mismatch_limit: float = 2.0
    """Largest ratio."""
    mismatch_floor: float = 0.0
    """With mismatch_correction=mask or reject: smallest ratio; 0: the inverse of mismatch_limit. IcePop has 0.5 and 5."""
    off_policy_mask_limit: float = 0.0
    """Tokens with a negative advantage are not learned from where the mean over the response of log p at sampling - log p now is above this
    (off-policy sequence masking of DeepSeek-V3.2); 0: all are."""
    options: dict[str, float] = field(default_factory=dict)
    """Keyword arguments of the advantage, the loss, the group filter or the response filter (dual_clip, tau_positive, drift, beta, responses_to_learn_from, or
    your own function's), checked against its signature at start-up."""

    def __post_init__(self) -> None:
        check_ranges("algorithm", self)
        if len(self.clip) != 2:
            raise ValueError(
                f"algorithm.clip={self.clip}: give two numbers, below and above, e.g. [0.2, 0.28]."
            )
        if self.router_aux_coefficient < 0 and self.router_aux_coefficient != -1:
            raise ValueError(
                f"algorithm.router_aux_coefficient={self.router_aux_coefficient:g}: give a weight, e.g. 0.001, or -1 for the model's own."
            )
        self._refuse_idle()

    def _refuse_idle(self) -> None:
        """Settings that belong to something that is off."""
        for off, names, because, cure in (
            (
                self.kl_coefficient == 0,
                ["kl_target"],
                "kl_coefficient",
                "kl_coefficient, e.g. 0.01",
            ),
            (self.kl_target == 0, ["kl_gain"], "kl_target", "kl_target, e.g. 0.05"),
            (self.entropy_target == 0, ["entropy_step"], "entropy_target", "entropy_target, e.g. 0.2"),
            (
                self.reference_update_steps == 0,
                ["reference_update_rate"],
                "reference_update_steps",
                "reference_update_steps=1",
            ),
            (self.teacher_coefficient == 0, ["teacher_in"], "teacher_coefficient", "teacher_coefficient=1"),
            (
                self.mismatch_correction not in ("mask", "reject"),
                ["mismatch_floor"],
                "mismatch_correction",
                "mismatch_correction=mask",
            ),
            (
                self.overlong_buffer == 0,
                ["overlong_penalty"],
                "overlong_buffer",
                "overlong_buffer to some tokens",
            ),
            (
                self.high_entropy_fraction == 1,
                ["high_entropy_scope"],
                "high_entropy_fraction",
                "high_entropy_fraction=0.2",
            ),
        ):
            if off:
                reason = f"algorithm.{because}={getattr(self, because)}"
                refuse_idle("algorithm", self, names, because=reason, cure=f"set algorithm.{cure}")
