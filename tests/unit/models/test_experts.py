"""Experts: what settings ask of a model, and what engines of other packages tell."""

from __future__ import annotations

import pytest
import torch

from lightrft.build.models import check_routing
from lightrft.config import AlgorithmConfig, Config, ModelConfig, RolloutConfig
from lightrft.engines.base import EngineError
from lightrft.models.experts import Routers, added, balancing_weight, of_layers, routers_of
from lightrft.models.tiny import tiny_model
from lightrft.runs.storage import restored, stored
from lightrft.testing import tiny_trajectories
from lightrft.trainer.routers import check_told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"rollout": RolloutConfig(routing_replay="old")},
            "rollout.routing_replay=old: model.path=random:llama has no router",
        ),
        (
            {"algorithm": AlgorithmConfig(router_aux_coefficient=-1)},
            "algorithm.router_aux_coefficient=-1: model.path=random:llama has no router",
        ),
    ],
)
def test_a_model_without_experts_is_refused_by_the_setting(settings, told):
    with pytest.raises(ValueError, match=told):
        check_routing(Config(model=ModelConfig(path="random:llama"), **settings))
    check_routing(Config(model=ModelConfig(path="random:mixtral"), **settings))
    check_routing(Config(model=ModelConfig(path="random:llama")))


@pytest.mark.parametrize("engine", ["vllm_server", "lmdeploy", "denoise"])
def test_an_engine_that_cannot_tell_experts_is_refused(engine):
    with pytest.raises(
        ValueError, match=f"rollout.engine={engine}: that engine does not tell .*native, vllm, sglang do"
    ):
        RolloutConfig(engine=engine, routing_replay="sampling")
    assert RolloutConfig(engine=engine, routing_replay="old").routing_replay == "old"
    assert RolloutConfig(engine="mine.py:Engine", routing_replay="sampling").tells_experts


def test_an_engine_of_a_user_that_says_nothing_is_named():
    answers = tiny_trajectories([(3, [2, 4, 0])])
    with pytest.raises(
        EngineError, match=r"rollout.engine=mine.py:Engine gave 2 of 3 responses without the experts"
    ):
        check_told(answers, "mine.py:Engine")
    answers[0].origin = answers[1].origin = "replayed"  # from a checkpoint of a run that did not ask for them
    check_told(answers, "mine.py:Engine")


def test_a_weight_is_the_setting_or_the_models_own():
    module = tiny_model("qwen3_moe", router_aux_loss_coef=0.003)
    assert balancing_weight(-1, module) == 0.003
    assert balancing_weight(0.5, module) == 0.5
    assert balancing_weight(0.0, tiny_model("llama")) == 0.0
    with pytest.raises(ValueError, match=r"router_aux_coefficient=-0.5: give a weight, e.g. 0.001, or -1"):
        AlgorithmConfig(router_aux_coefficient=-0.5)


def test_layers_without_experts_are_left_out_of_what_engines_tell():
    routers = routers_of(tiny_model("qwen2_moe"))  # experts in every second layer
    assert routers == Routers((1,), 2, 8, 2)
    of_all = torch.tensor([[[0, 0], [5, 1]], [[0, 0], [2, 7]]])
    assert of_layers(of_all.numpy(), routers).tolist() == [[[5, 1]], [[2, 7]]]
    assert of_layers(of_all[:, 1:], routers).tolist() == [[[5, 1]], [[2, 7]]]
    with pytest.raises(ValueError, match=r"the shape \(2, 3, 2\)"):
        of_layers(torch.zeros(2, 3, 2), routers)
    assert Routers((0,), 1, 512, 2).compact == torch.int16
    for wrong in (-1, 8):
        with pytest.raises(
            ValueError,
            match=f"experts from {min(wrong, 0)} to {max(wrong, 0)}, and the model has those from 0 to 7",
        ):
            of_layers(torch.tensor([[[0, wrong]]]), routers)


def test_rows_of_a_response_that_goes_on_are_added_behind_those_known():
    rows = torch.arange(5)[:, None, None]
    assert added(None, 5, rows) is rows
    assert added(rows[:3], 5, rows).flatten().tolist() == [0, 1, 2, 3, 4]
    assert added(rows[:3], 5, rows[3:]).flatten().tolist() == [0, 1, 2, 3, 4]
    assert added(rows[:2], 5, rows[3:]) is None  # one between is not known
    with pytest.raises(ValueError, match="experts of 5 tokens, and 4 were read"):
        added(None, 4, rows)


def test_experts_are_saved_with_responses():
    answers = tiny_trajectories([(3, [2, 4])])
    answers[0].experts = torch.tensor([[[5, 1]], [[2, 7]], [[0, 3]], [[255, 4]]], dtype=torch.uint8)
    first, second = restored(stored(answers))
    assert first.experts.dtype == torch.uint8
    assert first.experts.tolist() == answers[0].experts.tolist()
    assert second.experts is None
