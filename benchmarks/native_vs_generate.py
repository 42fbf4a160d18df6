"""Answers per second of the native engine beside transformers' own `generate`, with the same random weights.

    python benchmarks/native_vs_generate.py --shape smollm2-135m --questions 16 --answers 8 --tokens 128

Both draw the same number of tokens at temperature 1 for questions of one length (where padding costs `generate` nothing), in
turn, three times; the ratio of the medians is printed, with the most memory each took beside the weights. On an accelerator if
there is one. `--compile` tries what the engine does not offer: passes of fixed sizes that torch.compile has made.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightrft.config import NativeEngineConfig
from lightrft.engines import cuda_graphs as recordings
from lightrft.engines import scheduler
from lightrft.engines.native import NativeEngine
from lightrft.models.attention import ATTENTION
from lightrft.testing import tiny_prompt
from lightrft.types import Sampling
from lightrft.utils.device import pick_device

SHAPES = {
    "smollm2-135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                     "num_key_value_heads": 3, "vocab_size": 49152},
    "llama-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256},
    "llama-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                 "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


def wait(device: torch.device) -> None:
    """Until the device has done all it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def compile_passes() -> None:
    """Lets what would be recorded on a GPU be compiled, with weights as constants, which inductor then packs as `pack_weights` does."""
    import torch._inductor.config as inductor

    def compiled(function: Callable[[], torch.Tensor], *_: object) -> Callable[[], torch.Tensor]:
        start = time.perf_counter()
        made = torch.compile(lambda: function(), dynamic=False)
        made()
        print(f"a pass of new sizes: {time.perf_counter() - start:.1f} s to compile", flush=True)
        return made

    scheduler.can_record = lambda device: True
    recordings.recorded = compiled
    inductor.freezing = True
    torch._dynamo.config.recompile_limit = 64


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--length", type=int, default=100, help="tokens of a question")
    parser.add_argument("--dtype", default="", help="bfloat16 on an accelerator, else float32")
    parser.add_argument("--record", action="store_true", help="with recordings (CUDA graphs)")
    parser.add_argument("--compile", action="store_true", help="with compiled passes of fixed sizes")
    parser.add_argument("--profile", action="store_true", help="show where the native engine's time goes")
    given = parser.parse_args()
    device = pick_device("auto")
    dtype = getattr(torch, given.dtype or ("float32" if device.type == "cpu" else "bfloat16"))
    config = LlamaConfig(**SHAPES[given.shape], tie_word_embeddings=True, max_position_embeddings=8192)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION).eval()
    if given.compile:
        compile_passes()
    config = NativeEngineConfig(
        max_sequences=4096,
        cuda_graphs="on" if given.record or given.compile else "off",
        pack_weights=not given.compile,
    )
    engine = NativeEngine(model, frozenset(), str, config)
    prompts = [tiny_prompt(given.length, seed=n) for n in range(given.questions)]
    sampling = Sampling(n=given.answers, max_tokens=given.tokens, ignore_eos=True)
    ids = torch.tensor([p.token_ids for p in prompts], device=device)

    def native() -> None:
        """One rollout."""
        model.set_attn_implementation(ATTENTION)
        engine.generate(prompts, sampling)

    def generate() -> None:
        """The same by transformers."""
        model.set_attn_implementation("sdpa")
        options = {
            "max_new_tokens": given.tokens,
            "min_new_tokens": given.tokens,
            "num_return_sequences": given.answers,
        }
        with torch.no_grad():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, pad_token_id=0, **options
            )

    spent: dict[str, list[float]] = {"native": [], "generate": []}
    most: dict[str, float] = {}
    for repeat in range(4):
        for name, run in (("native", native), ("generate", generate)):
            for part in engine.parts().values():
                part.offload()
            if device.type != "cpu":
                torch.accelerator.empty_cache()
                torch.accelerator.reset_peak_memory_stats()
                before = torch.accelerator.memory_allocated()
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if repeat:  # the first warms up
                spent[name].append(time.perf_counter() - start)
            if device.type != "cpu":
                most[name] = (torch.accelerator.max_memory_allocated() - before) / 2**30
    count = given.questions * given.answers * given.tokens
    for name, seconds in spent.items():
        middle = statistics.median(seconds)
        memory = f", {most[name]:.2f} GiB beside the weights" if name in most else ""
        print(
            f"{given.shape} {dtype} {name:9} {middle:8.2f} s  {count / middle:9.0f} tokens/s  {1e3 * middle / given.tokens:6.2f} ms per token of all{memory}"
        )
    ratio = statistics.median(spent["generate"]) / statistics.median(spent["native"])
    print(f"native is {ratio:.2f} times as fast")
    if given.profile:
        with torch.profiler.profile() as found:
            native()
        key = "self_cpu_time_total" if device.type == "cpu" else f"self_{device.type}_time_total"
        print(found.key_averages().table(sort_by=key, row_limit=18, max_name_column_width=60))
