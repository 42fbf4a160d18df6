"""Training passes with plain and with compiled decoder layers (`model.compile`), in turn, on the same work and weights.

    python benchmarks/compiled.py --precisions bfloat16 --prompt-tokens 40

What it takes to compile is told by itself: it is paid once in a run. Log-probs of both are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import compare
import torch
from roofline import options_of, random_responses
from torch import Tensor, nn

from lightrft import Config
from lightrft.build.process import check_fused, prepare_process
from lightrft.config import ModelConfig
from lightrft.models.load import load_model, load_processor
from lightrft.models.logprobs import logprobs
from lightrft.trainer.batching import pack, plan
from lightrft.types import Batch


def main() -> None:
    """Measures, prints a table and writes results/compiled.json."""
    parser = options_of(__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = []
    for precision in options.precisions:
        modules = {}
        for name, on in (("plain", False), ("compiled", True)):
            config = Config(model=ModelConfig(path=options.model, dtype=precision, compile=on))
            prepare_process(config)
            check_fused(config, {"model.path": config.model})
            modules[name] = load_model(config.model)
        vocabulary = load_processor(config.model).vocab_size
        for length in options.prompt_tokens:
            work = random_responses(
                options.prompts, 8, prompt_tokens=length, new_tokens=48, vocabulary=vocabulary
            )
            batches = [pack(part) for part in plan(work, options.tokens_per_micro_batch)]
            found = {"precision": precision, "prompt_tokens": length, **in_turn(modules, batches, options)}
            kept.append(found)
    header = ["precision", "prompts of", "plain, CPU s", "compiled, CPU s", "ratio", "first pass, s", "log-probs apart", "load"]  # fmt: skip
    rows = [
        [f["precision"], str(f["prompt_tokens"]), f"{f['plain']:.2f}", f"{f['compiled']:.2f}", f"{f['ratio']:.2f}",
         f"{f['first']:.0f}", f"{f['apart']:.1e}", f"{f['load']:.1f}"] for f in kept
    ]  # fmt: skip
    print(compare.table(header, rows))
    compare.write_results("compiled", {"threads": options.threads, "measurements": kept})


def in_turn(
    modules: dict[str, nn.Module], batches: list[Batch], options: argparse.Namespace
) -> dict[str, Any]:
    """Medians of CPU seconds, and how far the mean log-prob of a token is from the other's."""
    spent: dict[str, list[float]] = {name: [] for name in modules}
    values, first = {}, 0.0
    for name, module in modules.items():
        start = time.perf_counter()
        values[name] = step(module, batches)
        first = time.perf_counter() - start
    for _ in range(options.repetitions):
        for name, module in modules.items():
            start = time.process_time()
            step(module, batches)
            spent[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    apart = float((values["plain"] - values["compiled"]).abs().mean())
    return {
        **medians,
        "ratio": medians["plain"] / medians["compiled"],
        "first": first,
        "apart": apart,
        "all": spent,
        "load": os.getloadavg()[0],
    }


def step(module: nn.Module, batches: list[Batch]) -> Tensor:
    """Forward and backward over all batches; the log-probs."""
    found = []
    for batch in batches:
        new = logprobs(module, batch, temperature=1.0, max_logits=0)
        new.values.sum().backward()
        found.append(new.values.detach())
    module.zero_grad(set_to_none=True)
    return torch.cat(found)


if __name__ == "__main__":
    main()
