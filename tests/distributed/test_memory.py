"""What a process holds at most while it learns: with two of them, about half of what one alone holds."""

import ctypes
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from lightrft.build.tables import STRATEGIES
from lightrft.config import DeepspeedConfig, ModelConfig, OptimizerConfig, StrategyConfig, UpdateConfig
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.testing import tiny_folder, tiny_processor, tiny_trajectories
from lightrft.trainer.batching import Batching
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Terms
from lightrft.utils.device import peak_gib, resident_gib
from tests.distributed.launch import together
from tests.distributed.test_strategies import needs_deepspeed

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 4,
         "num_key_value_heads": 4, "head_dim": 128}  # fmt: skip
WEIGHTS = 12 * (4 * 512 * 512 + 3 * 512 * 1536)
"""In the blocks; the rest is under a hundredth of it."""
HELD = {"single": 16, "fsdp": 16, "zero3": 24}
"""Bytes for each weight: itself, its gradient, both moments of AdamW. DeepSpeed has one more float32 copy of the
weights, and for its step one of the gradients."""
OPTIONS = {
    "zero3": {
        "deepspeed": DeepspeedConfig(param_persistence_threshold=0, max_live_parameters=0, bucket_mib=8)
    }
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads a process's own peak from /proc")


def growth(folder, backend):
    """Bytes by which this process grew at most while it took two updates, with the model it made for that."""
    mmap_threshold = -3  # larger blocks go back to the kernel when they are freed: what is counted is in use
    ctypes.CDLL(None).mallopt(mmap_threshold, 65536)
    torch.ones(64, 64, requires_grad=True).mm(torch.ones(64, 64)).sum().backward()
    strategy = STRATEGIES[backend](StrategyConfig(backend=backend, **OPTIONS.get(backend, {})), CPU)
    before = resident_gib()
    model = strategy.trainable(Source(ModelConfig(path=folder)), OptimizerConfig(), 2)
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the peak begins here: the file of the weights was mapped before

    def loss(batch):
        return Terms(-model.compute(partial(logprobs, temperature=1.0, max_logits=2000), batch).values)

    batching = Batching(UpdateConfig(), World.current(), CPU, dummy_answer(tiny_processor().blank()))
    for seed in (0, 1):
        updates = batching.updates(tiny_trajectories([(6, [5, 3])], seed=seed), seed=0)
        list(optimize(model, updates, loss, averaging=Averaging("token", 8), batching=batching))
    return (peak_gib() - before) * 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("larger") / "model", "llama", **SHAPE))


@pytest.mark.parametrize(
    ("backend", "processes"),
    [("single", 1), ("fsdp", 2), pytest.param("zero3", 2, marks=needs_deepspeed)],
)
def test_a_process_holds_its_share_and_what_computes(folder, backend, processes):
    share = HELD[backend] * WEIGHTS / processes
    for most in together(growth, processes, folder, backend, fresh=True):
        assert share < most < 1.4 * share
