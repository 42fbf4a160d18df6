"""DeepSpeed's ZeRO: its state is that of every other backend, and it leaves no update behind in the next."""

from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException
from torch.testing import assert_close

from lightrft.config import DeepspeedConfig, ModelConfig, StrategyConfig
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.parallel.world import World
from lightrft.strategy.deepspeed import Zero
from lightrft.strategy.in_memory import InMemory
from lightrft.testing import tiny_trajectories
from lightrft.trainer.batching import pack
from lightrft.types import Terms
from tests.distributed.launch import together
from tests.distributed.test_strategies import (
    CPU,
    OPTIONS,
    full,
    learn,
    needs_deepspeed,
    policy_loss,
    strategy_of,
)

ANSWERS = tiny_trajectories([(5, [4, 2])], seed=9)
HOST = DeepspeedConfig(offload_optimizer=True)
PIECES = DeepspeedConfig(param_persistence_threshold=0)
ALL_ON_HOST = DeepspeedConfig(param_persistence_threshold=100, offload_optimizer=True, offload_param=True)
"""With some weights in pieces and some whole."""


def broken_loss(model, batch):
    terms = policy_loss(model, batch)
    return Terms(terms.loss * torch.nan, {})


def whole_state(model):
    """The tensors of all ranks together, and the numbers."""
    found = {}
    for part in World.current().gather(model.tensor_state()):
        assert not found.keys() & part.keys(), "each tensor lies on one rank"
        found |= part
    return found, model.scalar_state()


def life(backend, options, dtype, given):
    """What becomes of a model that learns, meets a NaN, is saved, goes on; of one that goes on from `given`; of a reference."""
    source = Source(ModelConfig(path="random:llama", dtype=dtype))
    strategy = strategy_of(backend, **options)
    model = strategy.trainable(source, OPTIONS, 6)
    reports = learn(model, [0], policy_loss, source)
    reports += learn(model, [1], broken_loss, source)
    tensors, numbers = whole_state(model)
    state = {name: tensor.clone() for name, tensor in tensors.items()}
    reports += learn(model, [2], policy_loss, source)
    found = {
        "state": state,
        "numbers": numbers,
        "norms": [r["grad_norm"] for r in reports],
        "went on": full(model),
    }
    other = strategy.trainable(source, OPTIONS, 6)
    other.load(InMemory(given[0] if given else state), given[1] if given else numbers)
    learn(other, [2], policy_loss, source)
    found["resumed"] = full(other)
    reference = strategy.frozen(replace(source, learns=False))
    found["follows"] = follow(reference, model)
    again = strategy.frozen(replace(source, learns=False))
    again.load(InMemory(found["follows"]))
    with torch.no_grad():
        ask = partial(logprobs, temperature=1.0, max_logits=1000)
        found["asked"] = [frozen.compute(ask, pack(ANSWERS)).values for frozen in (reference, again)]
    return found


def follow(reference, model):
    with model.adapters_merged():
        reference.follow(model.weights(), 0.25)
    found = {}
    for part in World.current().gather(reference.tensor_state()):
        found |= {name: tensor.clone() for name, tensor in part.items()}
    return found


CASES = {
    "zero1": [({}, "bfloat16"), ({"deepspeed": HOST}, "float32")],
    "zero2": [({"deepspeed": HOST}, "bfloat16")],
    "zero3": [({"deepspeed": PIECES}, "float32"), ({"deepspeed": ALL_ON_HOST}, "bfloat16")],
}


def everything(backend, given):
    """All that two ranks are asked in one launch: processes take seconds to import DeepSpeed."""
    found = {"lives": [life(backend, options, dtype, given[dtype]) for options, dtype in CASES[backend]]}
    if backend == "zero1":
        found |= {"looking": looking(backend), "refusals": refusals()}
    return found


@pytest.fixture(scope="module")
def alone():
    return {dtype: life("single", {}, dtype, None) for dtype in ("float32", "bfloat16")}


@pytest.fixture(scope="module")
def asked(alone):
    """Backend -> what each of two ranks found, launched once."""
    given = {dtype: (found["state"], found["numbers"]) for dtype, found in alone.items()}
    return cache(lambda backend: together(everything, 2, backend, given, seconds=240))


@needs_deepspeed
@pytest.mark.parametrize("backend", CASES)
def test_a_state_goes_from_one_process_to_two_and_back(backend, alone, asked):
    ranks = [found["lives"] for found in asked(backend)]
    for place, (_, dtype) in enumerate(CASES[backend]):
        expected = alone[dtype]
        near = {"atol": 1e-6, "rtol": 0} if dtype == "float32" else {"atol": 4e-3, "rtol": 0}
        for found in (rank[place] for rank in ranks):
            assert found["numbers"] == expected["numbers"]
            rel = (
                1e-4 if dtype == "float32" else 5e-3
            )  # rounding depends on which answers are computed together
            assert found["norms"] == pytest.approx(expected["norms"], rel=rel, nan_ok=True)
            assert found["state"].keys() == expected["state"].keys()
            assert_close(found["state"], expected["state"], **near)
            for name in ("went on", "resumed", "follows"):
                assert_close(found[name], expected[name], **near)
            assert torch.equal(found["asked"][0], found["asked"][1])
            assert_close(
                found["asked"][0], expected["asked"][0], atol=1e-5 if dtype == "float32" else 0.05, rtol=0
            )
        assert_close(back_alone(ranks[0][place], dtype), expected["went on"], **near)


def back_alone(found, dtype):
    """One process goes on from what two have saved."""
    source = Source(ModelConfig(path="random:llama", dtype=dtype))
    model = strategy_of("single").trainable(source, OPTIONS, 6)
    model.load(InMemory(found["state"]), found["numbers"])
    learn(model, [2], policy_loss, source)
    return full(model)


def looks(module, tokens, pixels):
    """Something of words, and of a picture where there is one."""
    words = module.model.language_model(input_ids=tokens).last_hidden_state.square().mean()
    if pixels is None:
        return words
    seen = module.model.vision_tower(pixels).last_hidden_state
    return words + module.model.multi_modal_projector(seen).square().mean()


def looking(backend):
    """Norm and weights after an update in which only the first of two ranks sees a picture."""
    model = strategy_of(backend).trainable(Source(ModelConfig(path="random:llava")), OPTIONS, 6)
    world = World.current()
    draw = torch.Generator().manual_seed(0)
    side = model.module.config.vision_config.image_size
    picture = torch.randn(1, 3, side, side, generator=draw)
    for rank in range(2):
        if rank % world.size == world.rank:
            model.backward(model.compute(looks, torch.tensor([[1, 2, 3 + rank]]), None if rank else picture))
    norm = model.gradient_norm()
    assert model.step(norm)
    return norm, full(model)


@needs_deepspeed
def test_with_zero1_a_rank_may_have_no_picture(asked):
    norm, weights = looking("single")
    for theirs, their_weights in (found["looking"] for found in asked("zero1")):
        assert theirs == pytest.approx(norm, rel=1e-5)
        assert_close(their_weights, weights, atol=1e-6, rtol=0)


def refusals():
    """What is said to settings that cannot be followed."""
    said = []
    for backend, source, device, offload in (
        ("zero2", "random:llava", CPU, False),
        ("zero3", "random:llava", CPU, False),
        ("zero1", "random:llama", torch.device("cuda"), True),
    ):
        with pytest.raises(ValueError, match=r"strategy\.") as error:
            Zero(StrategyConfig(backend=backend, offload=offload), device).trainable(
                Source(ModelConfig(path=source)), OPTIONS, 6
            )
        said.append(str(error.value))
    return said


@needs_deepspeed
def test_what_cannot_be_done_is_refused_with_a_cure(asked):
    two, three, moves = asked("zero1")[0]["refusals"]
    assert "random:llava reads media" in two
    assert "fsdp or zero1" in two
    assert "strategy.backend=zero3" in three
    assert "strategy.deepspeed.offload_optimizer=true" in moves


def test_a_process_by_itself_is_told_to_bring_others():
    with pytest.raises(ValueError, match=r"strategy\.backend=single"):
        strategy_of("zero2")


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_without_deepspeed_its_backends_name_what_to_install():
    with pytest.raises(
        ProcessRaisedException, match=r'RuntimeError: .*pip install "deepspeed<0.20,>=0.19.8"'
    ):
        together(strategy_of, 1, "zero1")


@pytest.mark.parametrize(
    ("backend", "options", "cure"),
    [
        ("fsdp", {"offload_optimizer": True}, "strategy.backend=zero2"),
        ("zero2", {"offload_param": True}, "strategy.backend=zero3"),
        ("zero1", {"param_persistence_threshold": 0}, "strategy.backend=zero3"),
    ],
)
def test_a_setting_of_another_stage_is_refused(backend, options, cure):
    with pytest.raises(ValueError, match=f"has no effect with strategy.backend={backend}.*{cure}"):
        StrategyConfig(backend=backend, deepspeed=DeepspeedConfig(**options))
