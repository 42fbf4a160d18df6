"""A checkpoint that some ranks wrote goes on on any other number of ranks, under any backend."""

import json
import os
import socket

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.testing import assert_close

from lightrft.config import CheckpointConfig, FsdpConfig
from lightrft.parallel.world import World
from lightrft.strategy.checkpoint import Checkpoints
from tests.distributed.launch import together
from tests.distributed.test_strategies import (
    ACTOR,
    OPTIONS,
    full,
    learn,
    needs_deepspeed,
    policy_loss,
    strategy_of,
)


def checkpoints(run, background=False):
    return Checkpoints(run / "checkpoints", CheckpointConfig(background=background), World.current())


def until_the_end(backend, run, **options):
    """Saves after two steps of three, in the background; the weights after the third."""
    model = strategy_of(backend, **options).trainable(ACTOR, OPTIONS, 6)
    learn(model, [0, 1], policy_loss, ACTOR)
    saved = checkpoints(run, background=True)
    saved.save(2, {"numbers": model.scalar_state()}, {"actor": model.tensor_state()})
    learn(model, [2], policy_loss, ACTOR)
    saved.wait()
    return full(model)


def from_the_second_step(backend, run):
    """The weights after the third step of who goes on, and what a torn checkpoint is passed over for."""
    saved = checkpoints(run)
    state = saved.load(saved.latest())
    model = strategy_of(backend).trainable(ACTOR, OPTIONS, 6)
    model.load(state["models"]["actor"], state["numbers"])
    learn(model, [2], policy_loss, ACTOR)
    return full(model)


def torn(run):
    """Where two ranks find the newest complete checkpoint after a later one was torn: each looks at a part of the files."""
    return checkpoints(run).latest()


def until_the_end_in_copies(run):
    return until_the_end("fsdp", run, fsdp=FsdpConfig(replicas=2))


def limits_of_further_groups(run, port):
    """Seconds that a save in the background, and copies of a model, wait for other ranks, in a run with a limit of 7."""
    os.environ.update(RANK=str(dist.get_rank()), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.destroy_process_group()
    with World.joined(torch.device("cpu"), 7.0):
        mesh = strategy_of("fsdp", fsdp=FsdpConfig(replicas=2))._mesh
        groups = [checkpoints(run, background=True)._group, *mesh.get_all_groups()]
        backends = [group._get_backend(torch.device("cpu")) for group in groups]
        return [backend.options._timeout.total_seconds() for backend in backends]


def assert_equal_weights(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("backend", ["fsdp", pytest.param("zero3", marks=needs_deepspeed)])
def test_two_ranks_save_and_one_or_four_go_on(backend, tmp_path):
    whole = together(until_the_end, 2, backend, tmp_path)[0]
    assert_equal_weights(from_the_second_step("single", tmp_path), whole)
    for found in together(from_the_second_step, 4, "fsdp", tmp_path):
        assert_equal_weights(found, whole)
    path = tmp_path / "checkpoints" / "step-000002"
    written = json.loads((path / "meta.json").read_text())["bytes"]
    shards = [size for name, size in written.items() if name.endswith("safetensors")]
    assert len(shards) == 2
    assert max(shards) < 0.7 * sum(shards), "each rank wrote its own half"


def numbers_in(run):
    """How many numbers the tensors of a run's only checkpoint have."""
    files = (run / "checkpoints" / "step-000002" / "tensors").glob("*.safetensors")
    return sum(tensor.numel() for file in files for tensor in load_file(file).values())


def test_copies_of_a_sharded_model_are_written_once(tmp_path):
    whole = together(until_the_end_in_copies, 4, tmp_path / "copies")[0]
    assert_equal_weights(from_the_second_step("single", tmp_path / "copies"), whole)
    until_the_end("single", tmp_path / "alone")
    assert numbers_in(tmp_path / "copies") == numbers_in(tmp_path / "alone")


def test_groups_of_their_own_wait_no_longer_than_the_run_does(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    assert together(limits_of_further_groups, 2, tmp_path, port) == [[7.0, 7.0, 7.0]] * 2


def test_one_process_saves_and_two_ranks_go_on_unless_a_shard_is_torn(tmp_path):
    whole = until_the_end("single", tmp_path)
    for found in together(from_the_second_step, 2, "fsdp", tmp_path):
        assert_equal_weights(found, whole)
    later = checkpoints(tmp_path).save(3, {}, {"actor": {"w": torch.zeros(1000)}})
    shard = next((later / "tensors").iterdir())
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert together(torn, 2, tmp_path) == [tmp_path / "checkpoints" / "step-000002"] * 2
