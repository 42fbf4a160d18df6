"""Safe RLHF from end to end, on a model so small that all of it takes minutes on a CPU: a reward model with the outputs `general` and `cost`,
a policy that learns `general` under a limit on its mean cost, and beside it one without that constraint and one that
learns the cost alone.

    python examples/safe_rlhf.py runs/safe

The world is the task `tiny`: a question of small letters, capitals or digits asks for a response of the same kind. Here capitals are unsafe:
a question of capitals is an unsafe one, which only an unsafe response would help, and the others are safe. No policy is told so: it
learns from the reward model, which has seen graded responses and nothing else. Dai et al. 2023, https://arxiv.org/abs/2310.12773.
"""

from __future__ import annotations

import argparse
import random
import string
from pathlib import Path
from typing import Any

import lightrft
from lightrft.rewards.text import same_kind
from lightrft.tasks.tiny import KINDS, MAX_TOKENS, questions
from lightrft.trainer.estimates import mean_estimate

ANYTHING = string.ascii_letters + string.digits + string.punctuation + " "
GRADED = {"format": "lightrft.datasets.preferences:graded", "on_bad_record": "skip"}

LIMIT = -3.0
"""Of the mean cost over all questions. At 0 a policy could answer every unsafe question, a third of all, and still be safe on average, since
safe responses cost far less than 0."""


def capitals(answer: str) -> float:
    """1 for an unsafe response: one with a capital letter."""
    return float(any(c.isascii() and c.isupper() for c in answer))


def comparisons(split: str, seed: int) -> list[dict[str, Any]]:
    """Rows of six responses to a question, from clean to random ones, with their grades: `general` is the share of characters of the kind
    that is asked for, the sign of `cost` says whether there are capitals."""
    rows = []
    for question, kind in questions(split, seed):
        draw = random.Random(f"safe/{question}")
        responses = [_mixed(draw, kind, purity) for purity in (1.0, 0.7, 0.4, 0.0)]
        responses += [_mixed(draw, draw.choice(list(KINDS)), purity) for purity in (1.0, 0.7)]
        responses = list(dict.fromkeys(responses))
        shares = [same_kind(one, kind) for one in responses]
        costs = [1.0 + sum(map(str.isupper, one)) / len(one) if capitals(one) else -1.0 for one in responses]
        rows.append(
            {"prompt": question, "responses": responses, "grades": {"general": shares, "cost": costs}}
        )
    return rows


def _mixed(draw: random.Random, kind: str, purity: float) -> str:
    """Characters of a kind, each replaced by any other at random as often as the purity allows."""
    length = draw.randint(1, MAX_TOKENS)
    return "".join(draw.choice(KINDS[kind] if draw.random() < purity else ANYTHING) for _ in range(length))


def rated(folder: Path, steps: int) -> str:
    """The reward model with both outputs."""
    run = lightrft.reward(
        layers="reward_tiny", data=comparisons("train", 0), evaluate=comparisons("evaluate", 0), tasks=GRADED,
        outputs=["general", "cost"], signed=["cost"], max_tokens=2 * MAX_TOKENS, steps=steps, run=folder,
    )  # fmt: skip
    return str(run.folder / "model")


def begun(folder: Path) -> str:
    """The model that all policies begin as: it answers in the kind of the question, safe or not."""
    return str(lightrft.sft(layers="sft_tiny", steps=30, evaluate=False, run=folder).folder / "model")


def taught(folder: Path, judge: str, model: str, steps: int) -> dict[str, lightrft.Run]:
    """Three policies by name, which began as the same model and learned from the same reward model."""
    limit = {"constraint": {"cost": "cost", "limit": LIMIT, "multiplier": 0, "learning_rate": 0.3}}
    kinds: dict[str, tuple[dict[str, float], dict[str, Any], dict[str, str]]] = {
        "general alone": ({"general": 1, "cost": 0}, {}, {}),
        # Under a constraint the critic knows the cost as well, and its value of that begins as the reward model's, too.
        "general under a limit": ({"general": 1, "cost": 0}, limit, {"cost_output": "cost"}),
        "cost alone": ({"general": 0, "cost": -1}, {}, {}),
    }
    found = {}
    for name, (weights, constraint, begins) in kinds.items():
        found[name] = lightrft.train(
            layers=["tiny", "ppo"], model=model, data="tiny", steps=steps,
            reward_model={"paths": {"general": judge, "cost": f"{judge}:cost"}},
            rewards={**weights, "same_kind": 0, "capitals": (capitals, 0)}, **constraint,
            critic={"path": f"{judge}:general", "optimizer": {"learning_rate": 3e-3}, **begins},
            # The reward model knows finished responses only: what is cut off teaches nothing.
            algorithm={"kl_coefficient": 0.05, "truncated": "mask"}, **{"rollout.max_tokens": 12},
            evaluate={"limit": 0}, run=folder / name.replace(" ", "-"),
        )  # fmt: skip
    return found


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """What held-out questions got: compliance where it is safe, capitals where they are not, and how many got nothing at all."""
    unsafe = [row for row in rows if row["target"] == "capital"]
    safe = [row for row in rows if row["target"] != "capital"]
    measured = (
        mean_estimate([same_kind(row["response"], row["target"]) for row in safe]),
        mean_estimate([capitals(row["response"]) for row in unsafe]),
        mean_estimate([float(not row["response"]) for row in rows]),
    )
    return f"{name:22}" + "".join(f"{one.mean:7.2f} ({one.low:.2f} to {one.high:.2f})" for one in measured)


def ending(run: lightrft.Run, name: str, last: int = 5) -> float:
    """The mean of a metric over the last steps."""
    values = run.series(name)[1][-last:]
    return sum(values) / len(values)


def main() -> None:
    """Learns, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the runs lie afterwards")
    parser.add_argument("--steps", type=int, default=25, help="of each policy")
    parser.add_argument("--reward-steps", type=int, default=200, help="of the reward model")
    options = parser.parse_args()
    folder = options.folder
    found = taught(
        folder, rated(folder / "rated", options.reward_steps), begun(folder / "begun"), options.steps
    )
    print(f"{'held-out questions':22}compliance on safe  | unsafe on unsafe    | empty")
    first = next(iter(found.values()))
    print(line("before", first.evaluation("before").responses))
    for name, run in found.items():
        print(line(name, run.evaluation("after").responses))
        print(
            f"  last steps: general {ending(run, 'reward/general'):.2f}, cost {ending(run, 'reward/cost'):.2f}"
        )
    prices = found["general under a limit"].series("constraint/multiplier")[1]
    print("multiplier by step:", ", ".join(f"{price:.2f}" for price in prices))


if __name__ == "__main__":
    main()
