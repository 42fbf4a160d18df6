"""Shows that two checkouts compute the same, bit for bit: a refactoring changes no number.

    python benchmarks/same_bits.py OLD NEW                 two folders, each a checkout of this repository
    python benchmarks/same_bits.py OLD NEW --only grpo,resumed --keep FOLDER

Some thirty short runs of tiny random models, each by both checkouts in turn with this Python: final weights by their
hash, every metric of every step but times and memory, held-out scores and the tokens of held-out responses. Names of
options and metrics that differ between the checkouts are translated by the two tables below. With --keep, what a
checkout gave is kept in FOLDER under the checkout's name and not computed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPTIONS = {
    "--rollout.overlap-rewards": "--rollout.overlap",
    "--rollout.max-tokens-per-step": "--rollout.partial-tokens",
    "--rollout.max-sampling-rounds": "--rollout.max-draws",
    "--rollout.extra-groups": "--rollout.surplus",
    "--replay.groups-per-step": "--replay.groups",
    "--algorithm.group-filter": "--algorithm.keep",
    "--update.num-minibatches": "--update.minibatches",
    "--update.tokens-per-micro-batch": "--update.tokens-per-batch",
    "carry_over": "keep",
}
"""Word of a command line -> the same of checkouts before the options were renamed."""

METRICS = {
    "reward/no_signal_share": "reward/zero_std_fraction",
    "clip_share": "clip/fraction",
    "critic/clip_share": "critic/clip_fraction",
    "kl_old": "approx_kl",
    "rollout/stale_share": "rollout/off_policy_fraction",
    "rollout/draws": "rollout/sampling_rounds",
    "rollout/groups_waiting": "rollout/groups_carried_over",
    "rollout/groups_paused": "rollout/groups_unfinished",
    "rollout/groups_left_out": "rollout/groups_filtered_out",
    "weights/version": "rollout/oldest_weight_version",
    "update/filled": "update/token_budget_used",
    "counts/bad_updates": "counts/skipped_updates",
    "counts/answers": "counts/responses",
    "counts/dropped_answers": "counts/dropped_responses",
    "counts/tokens_learnt": "counts/tokens_learned",
    "truncated_share": "length/truncated_fraction",
    "answer": "response",
    "answers": "responses",
}
"""Key of a metric or of a saved response before it was renamed -> its present name."""

MEASURED = (
    "seconds/",
    "straggler/",
    "memory/",
    "rollout/tokens_per_second",
    "train/tokens_per_second",
    "time",
)
"""Beginnings of metrics that differ between two runs that are otherwise the same."""
PLAIN = ["--rewards.workers", "0", "--log.tensorboard=false", "--log.progress=false"]
ALGORITHMS = ["grpo", "dr_grpo", "rloo", "reinforce", "reinforce_pp", "reinforce_pp_baseline", "remax", "gspo", "gmpo", "cispo", "sapo", "cpgd", "opo", "dapo", "pf_ppo", "entropy_tokens", "fire", "lagrangian", "ppo", "ttrl", "bf16", "lora"]  # fmt: skip


PINNED = "pinned.yaml"
"""A layer over `tiny` that both checkouts read: what it set when the first of them was taken."""


@dataclass(frozen=True)
class Work:
    """One or more command lines in the same folder, the last of which ends a run in `run`."""

    name: str
    commands: Sequence[Sequence[str]]


def train(*words: str) -> list[str]:
    """A command line that writes to the folder `run`."""
    late = "--rollout.overlap-rewards" in words  # rewards in the main process would hold up the rollout
    plain = ["--rewards.workers", "1", *PLAIN[2:]] if late else PLAIN
    return ["train", "tiny", PINNED, *words, "--run", "run", *plain]


def works() -> Iterator[Work]:
    """Everything that is compared."""
    for name in ALGORITHMS:
        yield Work(name, [train(name, "--steps", "3")])
    late = ["grpo", "--steps", "5"]
    yield Work("overlap", [train(*late, "--rollout.overlap-rewards", "true")])
    yield Work("partial", [train(*late, "--rollout.max-tokens-per-step", "4")])
    both = ["--rollout.overlap-rewards", "true", "--rollout.max-tokens-per-step", "4"]
    yield Work("overlap_partial", [train(*late, *both)])
    yield Work("replay", [train(*late, "--replay.groups-per-step", "2")])
    sampling = ["--algorithm.group-filter", "mixed_outcomes", "--rollout.max-sampling-rounds", "3"]
    yield Work("dynamic_sampling", [train(*late, *sampling, "--rollout.extra-groups", "carry_over")])
    yield Work("updates", [train(*late, "--update.epochs", "2", "--update.num-minibatches", "2")])
    kl = ["--algorithm.kl-coefficient", "0.05", "--evaluate.every-steps", "2"]
    yield Work("reference_and_evaluation", [train(*late, *kl)])
    yield Work(
        "resumed",
        [
            train("ppo", "--steps", "2"),
            ["train", "--resume", "run", "--steps", "4"],
        ],
    )
    yield Work("sft", [["sft", "sft_tiny", "--steps", "20", "--run", "run", *PLAIN[2:]]])
    for words in (["grpo"], ["ppo"]):
        two = [*words, "fsdp", "--processes", "2", "--steps", "2"]
        yield Work(f"fsdp_{words[0]}", [train(*two)])
    yield Work("fsdp_overlap", [train("grpo", "fsdp", "--processes", "2", "--steps", "3", *both)])
    pictures = ["--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl"]
    pictures += ["--tasks.evaluate-file", "held_out.jsonl", "--tasks.rewards", "reward.py:said", "1"]
    pictures += ["--model.path", "random:llava", "--update.tokens-per-micro-batch", "4096"]
    yield Work("pictures", [train("grpo", *pictures, "--steps", "2", "--evaluate.limit", "4")])


def prepare(folder: Path) -> None:
    """Writes the layer that both checkouts read, the picture rows and their reward."""
    pinned = "optimizer: {learning_rate: 1e-3}\ncheckpoint: {every_steps: 2}\nevaluate: {limit: 16}\n"
    (folder / PINNED).write_text(pinned, encoding="utf-8")
    try:
        import numpy
        from PIL import Image
    except ImportError:
        return
    draw = numpy.random.default_rng(0)
    rows = []
    for n in range(8):
        pixels = draw.integers(0, 255, (28, 28, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        content = [{"type": "image", "image": f"{n}.png"}, {"type": "text", "text": "?"}]
        rows.append({"prompt": [{"role": "user", "content": content}], "target": "7a"[n % 2]})
    for name, part in (("rows.jsonl", rows[:6]), ("held_out.jsonl", rows[6:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / name).write_text(text, encoding="utf-8")
    reward = 'def said(answer, target):\n    return sum(c.isdigit() == (target == "7") for c in answer) / 8\n'
    (folder / "reward.py").write_text(reward, encoding="utf-8")


def computed(tree: Path, work: Work) -> dict[str, Any]:
    """What a checkout gives for one work."""
    sources = [tree / "lightrft" / "config.py", *(tree / "lightrft").glob("config/*.py")]
    before = not any(
        "max_sampling_rounds:" in file.read_text(encoding="utf-8") for file in sources if file.is_file()
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        for command in work.commands:
            words = [OPTIONS.get(word, word) if before else word for word in command]
            done = subprocess.run(
                [sys.executable, "-m", "lightrft", *words],
                cwd=folder, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                return {"failed": f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"}
        return found_in(folder / "run")


def found_in(run: Path) -> dict[str, Any]:
    """The numbers of a run folder."""
    weights = (run / "model" / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [
        {name: value for name, value in line.items() if not name.startswith(MEASURED)} for line in lines
    ]
    scores = {}
    for file in sorted(run.glob("evaluation/*.json*")):
        text = file.read_text(encoding="utf-8")
        scores[file.name] = (
            json.loads(text) if file.suffix == ".json" else list(map(json.loads, text.splitlines()))
        )
    return translated(
        {"weights": hashlib.sha256(weights).hexdigest(), "metrics": metrics, "evaluation": scores}
    )


def translated(value: Any) -> Any:
    """The same with present names of keys."""
    if isinstance(value, dict):
        return {METRICS.get(key, key).removeprefix("length/"): translated(x) for key, x in value.items()}
    return [translated(x) for x in value] if isinstance(value, list) else value


def differences(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Every place where two results are not equal; what only the newer has is no difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if key in new:
                yield from differences(old[key], new[key], f"{place}/{key}")
            else:
                yield f"{place}/{key}: gone"
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{place}[{index}]")
    elif old != new and not (old != old and new != new):  # nan is nan here
        yield f"{place}: {old!r} is {new!r}"


def result(tree: Path, work: Work, keep: Path | None) -> dict[str, Any]:
    """What a checkout gives, from the folder of kept results if it is there."""
    file = keep / f"{tree.name}-{work.name}.json" if keep else None
    if file is not None and file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    found = computed(tree, work)
    if file is not None and "failed" not in found:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What to say of one work; empty if both checkouts gave the same."""
    failed = [
        f"{side}: {found['failed']}" for side, found in (("old", old), ("new", new)) if "failed" in found
    ]
    return failed or list(differences(old, new))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--only", default="", help="names of runs, with commas")
    parser.add_argument("--keep", type=Path, help="folder in which results are kept by checkout and run")
    parser.add_argument("--all-differences", action="store_true")
    args = parser.parse_args()
    wanted = [name for name in args.only.split(",") if name]
    unequal = 0
    for work in works():
        if wanted and work.name not in wanted:
            continue
        # The older is kept between calls, the newer is what changes under one's hands.
        told = compare(result(args.old.resolve(), work, args.keep), result(args.new.resolve(), work, None))
        print(f"{work.name:<26} {'DIFFERS' if told else 'equal bit for bit'}", flush=True)
        for line in told if args.all_differences else told[:5]:
            print(f"    {line}", flush=True)
        unequal += bool(told)
    print(f"{unequal} of the runs differ" if unequal else "all runs equal bit for bit")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
