"""Records tests/unit/runs/bad_runs.json: for each rule of advice a run that is really trained, and is bad in that one way.

    python tests/record_bad_runs.py [RULE...]

Without names all of them, five minutes on two cores. Each is a tiny model, most of them one that was shown what task `tiny` wants
before. What is kept of a run is what the rules read: see `kept`.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from lightrft.cli import main
from lightrft.runs.reader import Run
from lightrft.tasks.tiny import pairs

HERE = Path(__file__).parent
FILE = HERE / "unit" / "runs" / "bad_runs.json"
OF = f"{HERE / 'bad_rewards.py'}:"
QUIET = "--log.progress false --log.tensorboard false --log.curves false --checkpoint.every-steps 0"


def shown_before(more: str = "", *rewards: str, base: str = "base", layers: str = "tiny") -> str:
    """The command of a run that begins with a model that was shown before what the task wants, and learns from these rewards."""
    start = f"{layers} --model.path {base}/model --evaluate.limit 32 --optimizer.learning-rate 1e-3"
    weights = "".join(f" {OF}{name} 1" for name in rewards)
    return f"train {start} {more}" + (f" --rewards.functions{weights}" if rewards else "")


OFTEN = "--update.num-minibatches 4"
BEFORE = ("base", "early", "varied")
"""Runs that others begin with the model of."""
RECIPES = {
    "base": "sft sft_tiny",
    "early": "sft sft_tiny --steps 36",
    "varied": "sft sft_tiny --steps 150 --tasks.train file 1 --tasks.train-file rows.jsonl --tasks.evaluate tiny 1",
    "skipped_updates": shown_before("--optimizer.learning-rate 1e20 --optimizer.max-grad-norm 0"),
    "failing_rewards": shown_before("--rewards.on-failure drop", "place_of_first"),
    "reward_hacking": shown_before("", "digits"),
    "mismatch": shown_before("--rollout.top-p 0.5"),
    "critic": "train tiny ppo --critic.optimizer.learning-rate 5",
    "entropy_collapse": shown_before(f"--steps 45 {OFTEN} --update.epochs 4 --optimizer.learning-rate 1e-2"),
    "truncation": shown_before(
        "--rollout.max-tokens 4 --optimizer.learning-rate 1e-5", "finished", base="varied"
    ),
    "zero_variance": shown_before("", "never_empty"),
    "clipping": shown_before(
        f"--steps 12 {OFTEN} --update.epochs 2 --algorithm.clip 0.01 0.01", "anything", base="varied"
    ),
    "gradient_spike": shown_before("", "wrong_unit", layers="tiny dr_grpo"),
    "divergence": shown_before(
        "--steps 60 --algorithm.kl-coefficient 1e-6 --optimizer.learning-rate 4e-4 --optimizer.warmup-steps 40",
        "anything",
        base="varied",
    ),
    "longer": shown_before(
        "--steps 24 --rollout.max-tokens 48 --optimizer.learning-rate 3e-4", "longest_wins", base="varied"
    ),
    "format_alone": shown_before(
        "--steps 21 --rollout.prompts-per-step 16 --rollout.group-size 8 --update.num-minibatches 2 --optimizer.learning-rate 3e-3",
        "right_kind",
        "guess",
        base="early",
    ),
    "too_slow": shown_before(f"--steps 40 {OFTEN} --optimizer.learning-rate 1e-8"),
    "stragglers": shown_before(
        "--steps 8 --processes 2 --rewards.workers 0", "slow_on_one", layers="tiny fsdp"
    ),
    "slow_rollout": "train tiny --steps 12 --rollout.max-tokens 96 --optimizer.learning-rate 1e-5",
    "memory": shown_before("--steps 34 --rewards.workers 0", "leaking"),
    "garbled": shown_before("--steps 8 --rollout.temperature 3 --rollout.max-tokens 384"),
    "overfitting": "sft sft_tiny --tasks.train-limit 16 --steps 80 --evaluate.every-steps 10",
}
READ = re.compile(
    r"step|loss|nll|grad_norm|entropy|kl|approx_kl|clip/fraction|reward/.*|length/(mean|truncated_fraction)|counts/(failed/.*|responses|dropped_responses)"
    r"|(critic/)?counts/skipped_updates|mismatch/(max|mean_abs|ratio|effective_samples)|critic/explained_variance|evaluation/mean|held_out_nll/mean"
    r"|straggler/[a-z]+|seconds/(step|rollout|wait)|memory/rss_gib"
)
"""Metrics that rules look at."""
STOPS = ("skipped_updates",)
"""Runs that end with an error, as they should."""
SETTINGS = ("model.path", "model.dtype", "update.num_minibatches", "update.epochs")


def kept(folder: Path) -> dict[str, object]:
    """What rules look at: columns of metrics, to 4 digits, settings, intervals, and some responses of the last saved step."""
    facts = Run(folder).facts()
    names = sorted({name for row in facts.rows for name in row if READ.fullmatch(name)})
    return {
        "metrics": {name: [shorter(row.get(name, "")) for row in facts.rows] for name in names},
        "config": {
            name: below(facts.config[name], folder.parent) for name in SETTINGS if name in facts.config
        },
        "intervals": [[when, shorter(low), shorter(high)] for when, low, high in facts.intervals],
        "responses": [
            {"response": row["response"], "reward": shorter(row["reward"]), "finish": row["finish"]}
            for row in facts.responses
        ],
    }


def below(value: object, folder: Path) -> object:
    """A path in a folder that is gone afterwards as one from there; other values as they are."""
    return value.removeprefix(f"{folder}/") if isinstance(value, str) else value


def shorter(value: object) -> object:
    """A number to 4 digits; null as it is logged where it was not finite, "" where it was not logged."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def record(rule: str, folder: Path) -> None:
    """Trains, and says what is found."""
    words = [
        f"{folder}/{word}" if word == "rows.jsonl" or word.endswith("/model") else word
        for word in RECIPES[rule].split()
    ]
    code = main([*words, "--run", str(folder / rule), *QUIET.split()])
    if code and rule not in STOPS:
        raise SystemExit(f"{rule}: ended with {code}")
    found = Run(folder / rule).advice()
    print(f"== {rule}: {[(one.rule, one.level, one.evidence) for one in found]}", file=sys.stderr, flush=True)


def recorded(names: list[str]) -> None:
    """Trains each, and writes what is kept of it beside what was recorded before."""
    known = json.loads(FILE.read_text()) if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs("train", 0)]
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for rule in (*BEFORE, *names):
            record(rule, folder)
            known |= {} if rule in BEFORE else {rule: kept(folder / rule)}
            write(known)


def write(known: Mapping[str, object]) -> None:
    """A line for each run."""
    lines = [f"{json.dumps(rule)}: {json.dumps(run, separators=(',', ':'))}" for rule, run in known.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    recorded(sys.argv[1:] or [name for name in RECIPES if name not in BEFORE])
