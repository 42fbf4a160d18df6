"""FSDP2: pictures on one rank only, double precision, copies of shards, and what a rank holds."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from lightrft.config import FsdpConfig, ModelConfig, StrategyConfig, UpdateConfig
from lightrft.models.lazy import is_empty
from lightrft.models.load import load_processor
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.testing import keep_double, tiny_folder, tiny_trajectories
from lightrft.trainer.batching import Batching, by_group, pack
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Trajectory
from tests.distributed.launch import together
from tests.distributed.test_strategies import ACTOR, CPU, OPTIONS, full, learn, policy_loss, strategy_of
from tests.oracles.test_media_models import question


@dataclass(frozen=True)
class Double(Source):
    """A model in float64."""

    @property
    def dtype(self):
        return torch.float64

    def full(self, device="cpu"):
        return super().full(device).double()

    def empty(self, device="cpu", dtype=None):
        return super().empty(device, dtype or torch.float64)


DOUBLE = Double(ModelConfig(path="random:llama"))
SEEING = Source(ModelConfig(path="random:llava"))
HALF = Source(ModelConfig(path="random:llama", dtype="float16"))
BFLOAT16 = Source(ModelConfig(path="random:llama", dtype="bfloat16"))


def seen(step):
    """Answers to a question with two pictures, and to two without any."""
    draw, found = torch.Generator().manual_seed(step), []
    for group, count in enumerate([2, 0, 0]):
        prompt, _ = question("llava", count, 5 + group, seed=10 * step + group)
        for size in (4, 9):
            tokens = torch.randint(1, 255, (size,), generator=draw).tolist()
            answer = Trajectory(prompt, group, tokens, [True] * size, [0.0] * size, "stop", reward=0.0)
            answer.columns["advantages"] = torch.randn(size, generator=draw)
            found.append(answer)
    return found


def look(backend):
    """Weights of a model that sees after two steps in which only the first rank has pictures."""
    model, world = strategy_of(backend).trainable(SEEING, OPTIONS, 2), World.current()
    blank = dummy_answer(load_processor(SEEING.config).blank())
    batching = Batching(UpdateConfig(tokens_per_micro_batch=60), world, CPU, blank)
    for step in range(2):
        owned = enumerate(by_group(seen(step)))
        mine = [t for owner, group in owned for t in group if owner % world.size == world.rank]
        list(
            optimize(
                model,
                batching.updates(mine, seed=0),
                partial(policy_loss, model),
                averaging=Averaging("token", 16),
                batching=batching,
            )
        )
    return full(model)


def double(backend, **options):
    with keep_double():
        model = strategy_of(backend, **options).trainable(DOUBLE, OPTIONS, 6)
        learn(model, range(3), policy_loss, DOUBLE)
        return full(model)


def scaled(backend):
    """A model in float16 after three steps behind one whose updates overflowed: what was known then, its scale, and its float32 weights."""
    model = strategy_of(backend).trainable(HALF, OPTIONS, 6)
    model.scaling.value = 2.0**40
    learn(model, [0], policy_loss, HALF)
    overflowed = (model.version, model.scaling.value)
    model.scaling.value = 1024.0
    learn(model, range(1, 4), policy_loss, HALF)
    weights = {n: t for n, t in model.tensor_state().items() if n.startswith("weights/")}
    whole = {n: (t.full_tensor() if isinstance(t, DTensor) else t).clone() for n, t in weights.items()}
    return overflowed, model.version, model.scaling.value, whole


def everything(folder):
    """What the tests below look at, of one rank."""
    actor = strategy_of("fsdp").trainable(ACTOR, OPTIONS, 6)
    half = strategy_of("fsdp").trainable(BFLOAT16, OPTIONS, 6)
    stored = Source(ModelConfig(path=str(folder)))
    reference = strategy_of("fsdp").frozen(Source(stored.config, learns=False))
    batch = pack(tiny_trajectories([(4, [3])]))
    ask = partial(logprobs, temperature=1.0, max_logits=100)
    with torch.no_grad():
        told = [m.compute(ask, batch).values for m in (reference, half)]
    before = full(actor)
    learn(actor, [0], policy_loss, ACTOR)
    reference.follow(actor.weights(), 0.25)
    return {
        "seeing": look("fsdp"),
        "double": double("fsdp"),
        "scaled": scaled("fsdp"),
        "copies": double("fsdp", fsdp=FsdpConfig(replicas=2)),
        "kept": double("fsdp", fsdp=FsdpConfig(reshard_after_forward=False)),
        "host": double("fsdp", fsdp=FsdpConfig(offload=True)),
        "held": {name: part.nbytes() for name, part in actor.parts().items()},
        "types": sorted(
            {(str(p.dtype), str(w.dtype)) for p in half.module.parameters() for w in full(half).values()}
        ),
        "told": told,
        "before": before,
        "after": full(actor),
        "followed": {n: t.full_tensor().clone() for n, t in reference.tensor_state().items()},
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), "llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def ranks(stored):
    return together(everything, 2, stored, seconds=240)


@pytest.mark.parametrize("case", ["double", "copies", "kept", "host"])
def test_sharding_changes_no_digit(ranks, case):
    expected = double("single")
    for found in ranks:
        for name in expected:
            assert_close(found[case][name], expected[name], atol=1e-10, rtol=0, msg=name)


def test_ranks_without_pictures_do_not_keep_those_that_have_some_waiting(ranks):
    expected = look("single")
    for found in ranks:
        for name in expected:
            assert_close(found["seeing"][name], expected[name], atol=1e-6, rtol=0, msg=name)


def test_each_rank_holds_its_share(ranks):
    numbers = sum(p.numel() for p in ACTOR.full().parameters())
    for name, each in (("weights", 4), ("optimizer", 8)):
        held = [found["held"][name] for found in ranks]
        assert sum(held) == pytest.approx(each * numbers, rel=0.02)
        assert max(held) < 0.52 * each * numbers


def test_a_bfloat16_model_has_float32_weights_for_its_optimizer_and_gives_bfloat16_ones(ranks):
    assert ranks[0]["types"] == [("torch.float32", "torch.bfloat16")]


def test_a_float16_model_learns_by_a_scaled_loss_what_one_process_learns(ranks):
    *told, expected = scaled("single")
    assert told == [(0, 2.0**38), 6, 1024.0], "two updates a step"
    start = dict(HALF.full().named_parameters())
    for found in ranks:
        *same, weights = found["scaled"]
        assert same == told
        for name, weight in weights.items():
            moved = (expected[name] - start[name.removeprefix("weights/")]).abs().mean()
            assert (weight - expected[name]).abs().mean() <= 0.05 * moved, name


def test_weights_are_read_from_a_folder_in_pieces(ranks, stored):
    batch = pack(tiny_trajectories([(4, [3])]))
    whole = Source(ModelConfig(path=str(stored))).full()
    expected = logprobs(whole, batch, temperature=1.0, max_logits=100).values
    for found in ranks:
        assert_close(found["told"][0], expected, atol=1e-5, rtol=0)
        assert found["told"][1].dtype == torch.float32


def test_a_reference_in_pieces_follows(ranks, stored):
    start = Source(ModelConfig(path=str(stored)), learns=False).full().state_dict()
    for found in ranks:
        for name, weight in found["followed"].items():
            plain = name.removeprefix("weights/")
            if start[plain].shape == found["after"][plain].shape:
                assert_close(weight, start[plain].lerp(found["after"][plain], 0.25), atol=1e-6, rtol=0)


def test_a_hollow_model_takes_hardly_any_memory():
    model = Source(ModelConfig(path="random:llama")).empty()
    assert is_empty(model)
    assert {p.untyped_storage().nbytes() for p in model.parameters()} == {4}
    assert not is_empty(Source(ModelConfig(path="random:llama")).full())


def test_one_process_by_itself_is_refused_with_the_cure():
    with pytest.raises(ValueError, match="--processes N.*strategy.backend=single"):
        strategy_of("fsdp")


def test_settings_of_another_backend_are_refused():
    with pytest.raises(
        ValueError, match="strategy.fsdp.replicas=2 has no effect with strategy.backend=single"
    ):
        StrategyConfig(fsdp=FsdpConfig(replicas=2))
