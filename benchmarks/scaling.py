"""What an update costs per token, over answer length, group size, micro-batch and number of processes, and what ranks send.

    python benchmarks/scaling.py --picture docs/scaling.png

One process has two threads, two processes have one each. Times are CPU seconds of all processes (other programs on the
machine disturb them least); each number is the median of a few updates, taken in turn. A rank's traffic is counted by
watching the collectives of one update under FSDP2 and compared with what the algorithm must send.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from lightrft.app import STRATEGIES
from lightrft.config import FsdpConfig, ModelConfig, OptimizerConfig, StrategyConfig, UpdateConfig
from lightrft.models.blocks import blocks
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.strategy.world import World
from lightrft.testing import tiny_folder, tiny_processor, tiny_trajectories
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.trainer.replay import batch_tokens, blank_answer, by_group, plan
from lightrft.types import Batch, Terms, Trajectory
from tests.distributed.launch import together

SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
CPU = torch.device("cpu")
REPEATS = 3


def group(prompt: int, answers: int, length: int, seed: int = 0) -> list[Trajectory]:
    """Answers of one length to one question, with something to learn from."""
    found = tiny_trajectories([(prompt, [length] * answers)], seed=seed)
    for t in found:
        t.group = seed
        t.columns["advantages"] = torch.randn(len(t), generator=torch.Generator().manual_seed(seed))
    return found


def policy_loss(model: Any, batch: Batch) -> Terms:
    new = model.compute(partial(logprobs, temperature=1.0, max_logits=4_194_304), batch)
    return Terms(-batch.advantages * new.values)


def updater(folder: str, backend: str, **options: Any) -> Callable[[Sequence[Trajectory], int], None]:
    """What takes one update from answers, in micro-batches of so many tokens."""
    strategy = STRATEGIES[backend](StrategyConfig(backend=backend, **options), CPU)
    model = strategy.trainable(Source(ModelConfig(path=folder)), OptimizerConfig(), 100)

    def update(answers: Sequence[Trajectory], tokens_per_batch: int) -> None:
        list(
            optimize(
                model, answers, partial(policy_loss, model), config=UpdateConfig(tokens_per_batch=tokens_per_batch),
                averaging=Averaging("token", 1024), world=World.current(), device=CPU, seed=0,
                blank=blank_answer(tiny_processor().blank()),
            )
        )  # fmt: skip

    return update


def cost(
    update: Callable[[Sequence[Trajectory], int], None], cases: Sequence[tuple[Any, list[Trajectory], int]]
) -> dict[Any, float]:
    """CPU milliseconds per token read, of each case; cases take turns."""
    taken: dict[Any, list[float]] = {name: [] for name, _, _ in cases}
    for repeat in range(REPEATS + 1):
        for name, answers, budget in cases:
            start = time.process_time()
            update(answers, budget)
            spent = time.process_time() - start
            read = sum(batch_tokens(part) for part in plan(answers, budget))
            if repeat:  # the first one warms up
                taken[name].append(1000 * spent / read)
    return {name: statistics.median(values) for name, values in taken.items()}


def share(world: World) -> list[Trajectory]:
    """This rank's part of eight groups."""
    everything = [t for seed in range(8) for t in group(64, 4, 128, seed)]
    return [t for place, g in enumerate(by_group(everything)) if place % world.size == world.rank for t in g]


def of_rank(
    folder: str, backend: str, threads: int, options: dict[str, Any]
) -> tuple[float, float, dict[str, int], int]:
    """CPU and wall seconds of an update on this rank, the bytes it sends in one, and its micro-batches."""
    torch.set_num_threads(threads)
    update, world = updater(folder, backend, **options), World.current()
    answers = share(world)
    update(answers, 1024)
    spent = []
    for _ in range(REPEATS):
        begun, wall = time.process_time(), time.perf_counter()
        update(answers, 1024)
        spent.append((time.process_time() - begun, time.perf_counter() - wall))
    with Traffic() as traffic:
        update(answers, 1024)
    cpu, wall = (statistics.median(column) for column in zip(*spent, strict=True))
    return cpu, wall, dict(traffic.sent), len(plan(answers, 1024))


class Traffic:
    """Inside, counts the bytes that this rank sends in each kind of collective on tensors, as a ring would send them."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self._before: dict[str, Any] = {}

    def __enter__(self) -> Traffic:
        for name, which, times in (
            ("all_gather_into_tensor", "output_tensor", 1),
            ("reduce_scatter_tensor", "input", 1),
        ):
            self._before[name] = getattr(dist, name)
            setattr(dist, name, self._counting(name, which, times))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self._before.items():
            setattr(dist, name, function)

    def _counting(self, name: str, which: str, times: int) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            place = {"output_tensor": 0, "input": 1}[which]
            whole = kwargs[which] if which in kwargs else args[place]
            size = dist.get_world_size(kwargs.get("group"))
            self.sent[name] += times * whole.nbytes * (size - 1) // size
            return self._before[name](*args, **kwargs)

        return call


def theory(folder: str, micro_batches: int, ranks: int, again: bool) -> dict[str, float]:
    """Bytes a rank sends in one update under FSDP2: blocks are gathered for the forward and again for the backward pass, the rest
    (embeddings, head) once; gradients of all are scattered once, in float32. (R - 1) / R of each is another rank's."""
    module = Source(ModelConfig(path=folder)).full()
    inside = sum(p.numel() for block in blocks(module) for p in block.parameters())
    rest = sum(p.numel() for p in module.parameters()) - inside
    factor = 4 * micro_batches * (ranks - 1) / ranks
    return {
        "all_gather_into_tensor": factor * (inside * (2 if again else 1) + rest),
        "reduce_scatter_tensor": factor * (inside + rest),
    }


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--picture", type=Path, default=Path("scaling.png"))
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as place:
        folder = str(tiny_folder(Path(place) / "model", "llama", **SHAPE))
        torch.set_num_threads(2)
        update = updater(folder, "single")
        panels = {
            "answer length, tokens": cost(
                update, [(n, group(64, 4, n), 8192) for n in (64, 128, 256, 512, 1024)]
            ),
            "answers to a question of 256 tokens": cost(
                update, [(n, group(256, n, 64), 8192) for n in (1, 2, 4, 8, 16)]
            ),
            "tokens per micro-batch": cost(
                update,
                [(n, [t for s in range(8) for t in group(64, 4, 64, s)], n) for n in (320, 640, 1280, 2560)],
            ),
        }
        alone = together(of_rank, 1, folder, "single", 2, {}, seconds=300)
        rows = {"1 process, 2 threads": alone}
        for name, fsdp in (
            ("2 processes, FSDP2", FsdpConfig()),
            ("2, weights kept", FsdpConfig(reshard_after_forward=False)),
        ):
            rows[name] = together(of_rank, 2, folder, "fsdp", 1, {"fsdp": fsdp}, seconds=300)
        report(panels, rows, folder)
        draw(panels, rows, given.picture)


def report(panels: dict[str, dict[Any, float]], rows: dict[str, list[Any]], folder: str) -> None:
    """Prints every number."""
    for title, found in panels.items():
        print(f"\n{title}: CPU ms per token read")
        for value, milliseconds in found.items():
            print(f"  {value:>6}  {milliseconds:.3f}")
    print("\nan update of 32 answers: CPU seconds of all processes, wall seconds, ratio to one process")
    base = rows["1 process, 2 threads"][0]
    for name, ranks in rows.items():
        cpu, wall = sum(r[0] for r in ranks), max(r[1] for r in ranks)
        print(f"  {name:22} {cpu:6.2f} {wall:6.2f}   {cpu / base[0]:.2f} {wall / base[1]:.2f}")
    print("\nbytes a rank sends in an update: counted, by theory, ratio")
    for name, ranks in rows.items():
        if len(ranks) > 1:
            expected = theory(folder, max(r[3] for r in ranks), len(ranks), again="kept" not in name)
            for kind, sent in ranks[0][2].items():
                print(
                    f"  {name:22} {kind:24} {sent:>12,} {expected[kind]:>14,.0f}   {sent / expected[kind]:.3f}"
                )


def draw(panels: dict[str, dict[Any, float]], rows: dict[str, list[Any]], picture: Path) -> None:
    """Four panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.4))
    for axis, (title, found) in zip(axes, panels.items(), strict=False):
        axis.plot([str(x) for x in found], list(found.values()), marker="o")
        axis.set(xlabel=title, ylabel="CPU ms per token read", ylim=(0, None))
    names = list(rows)
    axes[3].bar(names, [sum(r[0] for r in ranks) for ranks in rows.values()])
    axes[3].set(ylabel="CPU seconds of an update, all processes")
    axes[3].tick_params(axis="x", labelrotation=15, labelsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main()
