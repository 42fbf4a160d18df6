"""What an update costs per token, over answer length, group size, micro-batch and number of processes, and what ranks send.

    python benchmarks/scaling.py --picture docs/scaling.png

Two processes share the cores that one process has alone. Times are CPU seconds of all processes (other programs on the
machine disturb them least); each number is the median of a few updates, taken in turn. A rank's traffic is counted by
watching the collectives of one update under FSDP2 and ZeRO and compared with what the algorithm must send.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from lightrft.build.tables import STRATEGIES, footprint
from lightrft.commands.plan import GIB, Hardware, Lengths
from lightrft.commands.plan import plan as plan_of
from lightrft.commands.plan.shape import Shape
from lightrft.config import (
    Config,
    DeepspeedConfig,
    FsdpConfig,
    ModelConfig,
    OptimizerConfig,
    RolloutConfig,
    StrategyConfig,
    UpdateConfig,
)
from lightrft.models.logprobs import logprobs
from lightrft.models.source import Source
from lightrft.models.words import dummy_answer
from lightrft.parallel.world import World
from lightrft.strategy.memory import Phase
from lightrft.testing import tiny_folder, tiny_processor, tiny_trajectories
from lightrft.trainer.batching import Batching, by_group, plan
from lightrft.trainer.optimize import Averaging, optimize
from lightrft.types import Batch, Terms, Trajectory
from lightrft.utils.imports import require
from tests.distributed.launch import together

SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
CPU = torch.device("cpu")
REPEATS = 5
MICRO_BATCH = 1024
"""Tokens, where processes are compared."""


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

    def update(answers: Sequence[Trajectory], tokens_per_micro_batch: int) -> None:
        config, blank = (
            UpdateConfig(tokens_per_micro_batch=tokens_per_micro_batch),
            dummy_answer(tiny_processor().blank()),
        )
        batching = Batching(config, World.current(), CPU, blank)
        updates, loss = batching.updates(answers, seed=0), partial(policy_loss, model)
        list(optimize(model, updates, loss, averaging=Averaging("token", 1024), batching=batching))

    return update


def cost(
    update: Callable[[Sequence[Trajectory], int], None], cases: Sequence[tuple[Any, list[Trajectory], int]]
) -> dict[Any, float]:
    """CPU milliseconds per token of the answers, of each case; cases take turns."""
    taken: dict[Any, list[float]] = {name: [] for name, _, _ in cases}
    for repeat in range(REPEATS + 1):
        for name, answers, budget in cases:
            start = time.process_time()
            update(answers, budget)
            spent = time.process_time() - start
            if repeat:  # the first one warms up
                taken[name].append(1000 * spent / sum(map(len, answers)))
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
    traffic = Traffic()  # before a backend takes hold of torch's functions
    update, world = updater(folder, backend, **options), World.current()
    answers = share(world)
    update(answers, MICRO_BATCH)
    spent = []
    for _ in range(REPEATS):
        continuation, wall = time.process_time(), time.perf_counter()
        update(answers, MICRO_BATCH)
        spent.append((time.process_time() - continuation, time.perf_counter() - wall))
    traffic.sent.clear()
    update(answers, MICRO_BATCH)
    cpu, wall = (statistics.median(column) for column in zip(*spent, strict=True))
    return cpu, wall, dict(traffic.sent), len(plan(answers, MICRO_BATCH))


class Traffic:
    """Counts, from when it is made, the bytes that this rank sends in collectives on tensors, as a ring would send them."""

    KINDS: ClassVar[dict[str, tuple[str, int, int]]] = {
        "all_gather_single": ("output_tensor", 0, 1),
        "reduce_scatter_single": ("input", 1, 1),
        "all_gather_into_tensor": ("output_tensor", 0, 1),
        "reduce_scatter_tensor": ("input", 1, 1),
        "all_reduce": ("tensor", 0, 2),
        "reduce": ("tensor", 0, 1),
        "broadcast": ("tensor", 0, 1),
        "all_gather": ("tensor_list", 0, 1),
        "reduce_scatter": ("input_list", 1, 1),
    }
    """Function -> the argument that holds the whole, its place, and how often the ring passes it on."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        for name, (which, place, times) in self.KINDS.items():
            setattr(dist, name, self._counting(getattr(dist, name), name, which, place, times))

    def _counting(
        self, function: Callable[..., Any], name: str, which: str, place: int, times: int
    ) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            whole = kwargs[which] if which in kwargs else args[place]
            size = dist.get_world_size(kwargs.get("group"))
            parts = whole if isinstance(whole, list) else [whole]
            self.sent[name] += times * sum(part.nbytes for part in parts) * (size - 1) // size
            return function(*args, **kwargs)

        return call


CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "1 process": ("single", 1, {}),
    "FSDP2": ("fsdp", 2, {}),
    "FSDP2, weights kept": ("fsdp", 2, {"fsdp": FsdpConfig(reshard_after_forward=False)}),
    "ZeRO 1": ("zero1", 2, {}),
    "ZeRO 2": ("zero2", 2, {}),
    "ZeRO 3": (
        "zero3",
        2,
        {"deepspeed": DeepspeedConfig(param_persistence_threshold=0, max_live_parameters=0)},
    ),
    "ZeRO 3, weights kept": ("zero3", 2, {"deepspeed": DeepspeedConfig(param_persistence_threshold=0)}),
}
"""Name -> backend, processes, settings. The cores are shared out among the processes."""


def main() -> None:
    """Measures, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--picture", type=Path, default=Path("scaling.png"))
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        folder = str(tiny_folder(Path(place) / "model", "llama", **SHAPE))
        torch.set_num_threads(cores)
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
        rows = {}
        for name, (backend, processes, options) in CASES.items():
            if backend.startswith("zero") and find_spec("deepspeed") is None:
                print(f"{name}: left out, DeepSpeed is not installed")
                continue
            threads = max(1, cores // processes)
            rows[name] = together(of_rank, processes, folder, backend, threads, options, seconds=300)
        extrapolate(Path(place))
        report(panels, rows, Shape(Source(ModelConfig(path=folder))))
        draw(panels, rows, given.picture)


def report(panels: dict[str, dict[Any, float]], rows: dict[str, list[Any]], shape: Shape) -> None:
    """Prints every number."""
    for title, found in panels.items():
        print(f"\n{title}: CPU ms per token of an answer")
        for value, milliseconds in found.items():
            print(f"  {value:>6}  {milliseconds:.3f}")
    print("\nan update of 32 answers      CPU s of all, wall s; ratios to one process")
    base = rows["1 process"][0]
    for name, ranks in rows.items():
        cpu, wall = sum(r[0] for r in ranks), max(r[1] for r in ranks)
        print(f"  {name:24} {cpu:8.2f} {wall:8.2f}      {cpu / base[0]:.2f} {wall / base[1]:.2f}")
    print(f"\nMB sent by a rank in an update of {shape.weights:,} weights: counted, by theory, ratio")
    for name, ranks in rows.items():
        backend, processes, options = CASES[name]
        if processes > 1:
            sent = sum(ranks[0][2].values()) / 1e6
            batches = max(r[3] for r in ranks)
            strategy = StrategyConfig(backend=backend, **options)
            expected = footprint(strategy, shape, processes).traffic.bytes(batches, shape.width, processes)
            kinds = ", ".join(f"{kind} {count / 1e6:.1f}" for kind, count in sorted(ranks[0][2].items()))
            print(f"  {name:24} {sent:8.1f} {expected / 1e6:8.1f}   {sent / expected * 1e6:.3f}   ({kinds})")


QWEN2_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip
LARGE: dict[str, Callable[[int], StrategyConfig]] = {
    "FSDP2": lambda n: StrategyConfig(backend="fsdp", offload=True),
    "FSDP2, weights kept": lambda n: StrategyConfig(
        backend="fsdp", offload=True, fsdp=FsdpConfig(reshard_after_forward=False)
    ),
    "FSDP2, a copy per machine": lambda n: StrategyConfig(
        backend="fsdp", offload=True, fsdp=FsdpConfig(replicas=n // 8)
    ),
    "ZeRO 1": lambda n: StrategyConfig(backend="zero1"),
    "ZeRO 2": lambda n: StrategyConfig(backend="zero2"),
    "ZeRO 3": lambda n: StrategyConfig(backend="zero3", deepspeed=DeepspeedConfig(max_live_parameters=0)),
}


def extrapolate(folder: Path) -> None:
    """What `lightrft plan` expects of Qwen2-7B on more ranks: 16 answers a rank, 512 and 2048 tokens, H100 of 80 GB."""
    (folder / "config.json").write_text(json.dumps(QWEN2_7B))
    model = ModelConfig(path=str(folder), dtype="bfloat16", gradient_checkpointing=True)
    print(
        "\nQwen2-7B, per rank and step: GB sent in training and at the sync; s of training, of it products; GiB in training"
    )
    for ranks in (8, 64, 1024):
        for name, strategy in LARGE.items():
            config = Config(
                model=model,
                strategy=strategy(ranks),
                rollout=RolloutConfig(prompts_per_step=2 * ranks, max_tokens=2048),
                update=UpdateConfig(tokens_per_micro_batch=16384),
            )
            found = plan_of(config, Hardware(ranks, 80.0), Lengths(512, 2048))
            work, rates = found.work, found.hardware.rates
            computing = work.train.flops / (1e12 * rates.teraflops * rates.efficiency)
            print(
                f"  {ranks:>5} {name:26} {work.train.sent / 1e9:7.1f} {work.sync.sent / 1e9:6.1f}   {work.train.seconds:6.2f} {computing:6.2f}   "
                f"{found.sums[Phase.TRAIN] / GIB:6.1f}"
            )


def draw(panels: dict[str, dict[Any, float]], rows: dict[str, list[Any]], picture: Path) -> None:
    """Four panels."""
    require("matplotlib", "plots").use("Agg")
    pyplot = require("matplotlib.pyplot", "plots")

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.4))
    for axis, (title, found) in zip(axes, panels.items(), strict=False):
        axis.plot([str(x) for x in found], list(found.values()), marker="o")
        axis.set(xlabel=title, ylabel="CPU ms per token of an answer", ylim=(0, None))
    names = list(rows)
    axes[3].bar(names, [sum(r[0] for r in ranks) for ranks in rows.values()])
    axes[3].set(ylabel="CPU seconds of an update, all processes")
    axes[3].tick_params(axis="x", labelrotation=30, labelsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    print(f"\npicture: {picture}")


if __name__ == "__main__":
    main()
