"""Who is on the device when: the table of phases with the engines and models that a program may hold."""

import pytest
import torch

from lightrft.build.judges import held_whole
from lightrft.build.memory import build_memory_plan
from lightrft.config import Config, NativeEngineConfig, StrategyConfig
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.models.tiny import tiny_model
from lightrft.strategy.memory import Phase


class Part:
    """Remembers whether it is there."""

    def __init__(self, there=False):
        self.there = there

    def onload(self):
        self.there = True

    def offload(self):
        self.there = False

    def nbytes(self):
        return 1


class Holding:
    """A model or an engine with these parts."""

    def __init__(self, **parts):
        self.held = parts

    def parts(self):
        return self.held


def there(memory_plan, phase, parts):
    with memory_plan(phase):
        return {name for name, part in parts.items() if part.there}


@pytest.mark.parametrize("native", [True, False])
def test_what_only_asks_holds_policy_and_judge_in_turn(native):
    policy = Part(there=True)
    parts = {"policy": policy, "judge": Part(), "judge cache": Part()}
    judging = {"judge weights": parts["judge"], "judge cache": parts["judge cache"]}
    if native:
        engine = NativeEngine(
            tiny_model("llama", attention=ATTENTION), frozenset(), bytes, NativeEngineConfig()
        )
    else:
        parts |= {"weights": Part(), "cache": Part()}
        engine = Holding(weights=parts["weights"], cache=parts["cache"])
    memory_plan = build_memory_plan({"policy": Holding(weights=policy)}, engine, judging, torch.device("cpu"))
    assert there(memory_plan, Phase.SYNC, parts) == {"policy"} | ({"weights"} if not native else set())
    assert there(memory_plan, Phase.ROLLOUT, parts) == ({"policy"} if native else {"weights", "cache"})
    assert there(memory_plan, Phase.SCORE, parts) == {"judge", "judge cache"}


def test_a_run_begins_with_nothing_on_the_device():
    """A critic and the masters of an optimizer are made there, and not needed before they learn."""
    parts = {name: Part(there=True) for name in ("actor", "optimizer", "critic", "reference")}
    owners = {
        "actor": Holding(weights=parts["actor"], optimizer=parts["optimizer"]),
        "critic": Holding(weights=parts["critic"]),
        "reference": Holding(weights=parts["reference"]),
    }
    memory_plan = build_memory_plan(owners, Holding(), {}, torch.device("cpu"))
    memory_plan.begin()
    assert there(memory_plan, Phase.SYNC, parts) == {"actor"}
    assert there(memory_plan, Phase.ROLLOUT, parts) == set()
    assert there(memory_plan, Phase.SCORE, parts) == {"actor", "critic", "reference"}
    assert there(memory_plan, Phase.TRAIN, parts) == {"actor", "critic", "optimizer"}


def test_a_model_that_is_only_asked_moves_where_offloading_is_on():
    config = Config(strategy=StrategyConfig(offload=True))
    assert held_whole(tiny_model("llama"), config, torch.device("meta")).moves
    assert not held_whole(tiny_model("llama"), config, torch.device("cpu")).moves
