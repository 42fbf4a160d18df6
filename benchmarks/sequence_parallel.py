"""What a process keeps for the backward pass of one long answer, alone and in a team that shares its tokens.

    python benchmarks/sequence_parallel.py --length 8192 --teams 2 4

Counted, not sampled: every tensor that autograd saves, each storage once, weights left out. Processes meet over gloo on
one machine, so that seconds tell of its cores and not of a network.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from lightrft.models.attention import ATTENTION
from lightrft.models.logprobs import logprobs
from lightrft.parallel.world import World
from lightrft.testing import tiny_model, tiny_trajectories
from lightrft.trainer.batching import pack

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


def main() -> None:
    """Measures teams of each size and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192, help="tokens of the answer")
    parser.add_argument(
        "--teams", type=int, nargs="+", default=[2], help="processes that share it; divisors of 8"
    )
    parser.add_argument("--recompute", action="store_true", help="with activation checkpointing")
    options = parser.parse_args()
    print("processes  kept by the busiest, MiB  of one process  seconds")
    alone = 0.0
    for size in (1, *options.teams):
        kept, seconds = measure(size, options.length, options.recompute)
        alone = alone or kept
        print(f"{size:9d}  {kept / 2**20:24.1f}  {kept / alone:14.3f}  {seconds:7.2f}", flush=True)


def measure(size: int, length: int, recompute: bool) -> tuple[float, float]:
    """Bytes that the busiest rank keeps, and seconds of the slowest."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (size, length, recompute, folder), nprocs=size)
        found = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(size)]
    return max(kept for kept, _ in found), max(seconds for _, seconds in found)


def _rank(rank: int, size: int, length: int, recompute: bool, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    model = tiny_model("llama", attention=ATTENTION, max_position_embeddings=2 * length, **SHAPE)
    if recompute:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    _step(model, 64, size)  # warms up
    torch.save(_step(model, length, size), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def _step(model: nn.Module, length: int, size: int) -> tuple[int, float]:
    """Bytes kept from the forward to the backward pass, and seconds of both."""
    batch = pack(tiny_trajectories([(64, [length])]))
    assert batch.inputs is not None
    batch = replace(batch, inputs=replace(batch.inputs, team=World.current(size).team))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = logprobs(model, batch, temperature=1.0, max_logits=4_194_304).values
    bytes_kept = sum(kept.values())
    values.sum().backward()
    return bytes_kept, time.perf_counter() - start


if __name__ == "__main__":
    main()
