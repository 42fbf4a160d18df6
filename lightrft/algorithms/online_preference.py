"""Losses of preferences on responses that the policy has just sampled: their rewards say which of a group is better.

Guo et al. 2024, Direct Language Model Alignment from Online AI Feedback (https://arxiv.org/abs/2402.04792), with DPO, IPO and SLiC's hinge.
The losses are those of `lightrft dpo` (policy_preference.py), which compare the responses of a group; whatever gives rewards takes the
place of the annotator.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightrft.algorithms.policy_preference import POLICY_LOSSES, pair_ratios, response_values
from lightrft.algorithms.preference import PreferenceLoss, pairs
from lightrft.algorithms.selection import EQUAL_WITHIN
from lightrft.config import AlgorithmConfig
from lightrft.types import Batch, Terms

UNREAD = {
    "clip": "its responses have no ratio that could be clipped",
    "advantage_clip": "it reads no advantages",
    "whiten": "it reads no advantages",
    "average": "a response weighs as others do, and the loss of a group is one number",
    "high_entropy_fraction": "it compares whole responses",
    "truncated": "it compares whole responses",
    "mismatch_correction": "it compares whole responses",
    "off_policy_mask_limit": "it reads no advantages",
    "reward_clip": "it reads the order of rewards alone",
    "overlong_buffer": "it reads the order of rewards alone",
    "gamma": "it reads no advantages",
    "gae_lambda": "it reads no advantages",
}
"""Settings of the algorithm that say nothing to such a loss, and why."""


def places(scores: Tensor, groups: Tensor) -> Tensor:
    """(S,) float32: how many responses of its group each one is better than; rewards that are equal but for rounding are."""
    together = groups[:, None] == groups[None, :]
    largest = torch.where(together, scores.abs()[None, :], 0.0).amax(1, keepdim=True)
    return (together & (scores[:, None] - scores[None, :] > EQUAL_WITHIN * largest)).sum(1).float()


class OnlinePreference:
    """A loss of reinforcement learning made of one of preferences, of which it has the options."""

    on_policy_only = False
    compares_groups = True
    """No micro-batch may divide a group; rewards are read in place of advantages."""

    def __init__(self, function: PreferenceLoss) -> None:
        self._function = function
        self.__doc__ = f"{inspect.getdoc(function)}\n\nOf responses sampled in this step; D and L are at the temperature of sampling."
        given = [
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("new", "batch", "algo")
        ]
        options = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        self.__signature__ = inspect.Signature([*given, *options])

    @property
    def needs_reference(self) -> bool:
        """Whether batch.ref must be there."""
        return bool(getattr(self._function, "needs_reference", True))

    @property
    def ranges(self) -> Mapping[str, Any]:
        """What its options may be."""
        found: Mapping[str, Any] = getattr(self._function, "ranges", {})
        return found

    def __call__(self, new: Tensor, batch: Batch, algo: AlgorithmConfig, **options: float) -> Terms:  # noqa: ARG002
        """The loss of each token, (T,): that of its group; 0 where all rewards of that are equal. `new`: log-probs, (T,)."""
        average = bool(getattr(self._function, "averages", False))
        values = response_values(new, batch, average=average, reference=self.needs_reference)
        grades = places(batch.scores, batch.groups)
        losses = self._function(values, grades, batch.groups, **options)
        ratios = pair_ratios(values.detach(), *pairs(grades, batch.groups))
        return Terms(losses[batch.segments], {}, ratios)


ONLINE_LOSSES: Mapping[str, OnlinePreference] = {
    name: OnlinePreference(function)
    for name, function in POLICY_LOSSES.items()
    if getattr(function, "compares_responses", False)
}
"""algorithm.loss -> a loss that compares the responses of a group."""
