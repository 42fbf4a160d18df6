"""What a checkpoint must hold of a critic for a run to go on with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lightrft.algorithms.algorithm import build
from lightrft.build.assemble import check_learners
from lightrft.config import Config, layers
from lightrft.utils.imports import resolve


def checkpoint(cost: str, outputs: int, setting: str | None = None) -> dict[str, Any]:
    """What is looked at of one. `cost` is the name that the cost has among rewards, `setting` what was set."""
    scaler = {"cost": cost} | ({} if setting is None else {"constraint.cost": setting})
    critic = SimpleNamespace(shapes=lambda: {"weights/head.weight": (outputs, 64)})
    return {"done": 3, "parts": {"scaler": scaler}, "models": {"actor": None, "critic": critic}}


def check(cost: str, state: dict[str, Any], *further: str) -> None:
    config = layers.load(["tiny", "ppo", "--constraint.cost", cost, *further], Config)
    check_learners(config, build(config.algorithm, resolve), state)


def test_a_critic_goes_on_with_the_cost_that_it_knows():
    check("length", checkpoint("length", 2, "length"))
    check("mine.py:cost", checkpoint("cost", 2, "mine.py:cost"))
    check("", checkpoint("", 1, ""))


@pytest.mark.parametrize(
    ("cost", "state", "told"),
    [
        ("", checkpoint("cost", 2, "mine.py:cost"), "learned with constraint.cost=mine.py:cost up to the checkpoint of step 3"),
        ("repetition", checkpoint("length", 2, "length"), "Resume with constraint.cost=length, or"),
        ("length", checkpoint("", 1, ""), "learned with constraint.cost='' up to"),
        ("length", checkpoint("length", 1), "the critic in the checkpoint of step 3 is of an earlier LightRFT"),
    ],
)  # fmt: skip
def test_another_cost_or_a_critic_without_its_value_is_refused(cost, state, told):
    with pytest.raises(ValueError, match=told):
        check(cost, state)


def test_without_a_critic_a_constraint_may_come_and_go():
    check("length", checkpoint("", 1, ""), "--algorithm.advantage", "group_mean")
