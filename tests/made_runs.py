"""Run folders as a training run writes them, with made contents: no model is needed to look at a run."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightrft.runs import trajectories
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.metrics import Logger
from lightrft.types import Prompt, Trajectory

NAMES = ["Lena", "Omar", "Mia", "Jon", "Ada", "Tariq", "Ines", "Kofi"]
THINGS = ["apples", "stamps", "books", "coins", "shells", "tickets"]


def question(random_: random.Random) -> tuple[str, int]:
    """A question with its answer."""
    name, thing = random_.choice(NAMES), random_.choice(THINGS)
    a, b = random_.randint(12, 60), random_.randint(3, 11)
    return f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", a + b


def pieces_of(text: str) -> list[str]:
    """Words with the space before them, as most tokenizers cut."""
    return [word if n == 0 else f" {word}" for n, word in enumerate(text.split(" "))]


def response(
    random_: random.Random, prompt: Prompt, group: int, skill: float, uses_tool: bool = False
) -> tuple[Trajectory, list[str]]:
    """A response that is right with the probability `skill`, with every column of its tokens."""
    right = random_.random() < skill
    answer = prompt.target if right else prompt.target + random_.choice([-10, -1, 1, 10])
    text = f"We add the two numbers step by step. First the tens, then the ones. So the answer is {answer}."
    text += random_.choice(["", " That is all.", " I have checked it once more."])
    pieces = pieces_of(text)
    sampled = [-abs(random_.gauss(0, 0.9)) * (2.5 if str(answer) in piece else 0.7) for piece in pieces]
    mask = [True] * len(pieces)
    t = Trajectory(
        prompt,
        group,
        list(range(len(pieces))),
        mask,
        sampled,
        "stop" if random_.random() < 0.9 else "length",
        answer=text,
        reward=float(right),
    )
    t.use, t.parts = "trained", {"exact": float(right), "form": 1.0}
    shift = torch.tensor([random_.gauss(0, 0.15) for _ in pieces])
    t.columns = {
        "old": torch.tensor(sampled) + 1e-4 * shift,
        "entropy": -torch.tensor(sampled),
        "ref": torch.tensor(sampled) - shift,
    }
    t.learned = {"new": torch.tensor(sampled) + shift, "weight": torch.full((len(pieces),), 1 / len(pieces))}
    if uses_tool:
        call = {"function": {"name": "calculator", "arguments": '{"expression": "12 + 30"}'}}
        t.said = [
            {
                "role": "assistant",
                "content": "<think>I should ask the tool.</think>Let me calculate.",
                "tool_calls": [call],
            },
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": text},
        ]
    return t, pieces


def learning_run(
    folder: Path,
    *,
    seed: int = 0,
    steps: int = 8,
    learning_rate: float = 3e-5,
    groups: int = 6,
    siblings: int = 6,
    held_out: int = 40,
) -> Path:
    """A run that learns sums: metrics, responses with tokens, tools in one group and pictures in another, evaluations."""
    random_ = random.Random(seed)
    files = RunFolder(folder)
    with Logger(folder, tensorboard=False) as logger:
        for step in range(1, steps + 1):
            skill = 0.15 + 0.75 * step / steps
            rewards = save_step(folder, step, random_, skill, groups, siblings)
            logger.log(step, metrics(random_, step / steps, rewards))
    files.write_format()
    files.config.write_text(
        f"steps: {steps}\nseed: {seed}\nmodel:\n  dtype: float32\noptimizer:\n  learning_rate: {learning_rate}\n"
    )
    files.write_summary({"steps": steps, "evaluation": evaluate(folder, random_, held_out)})
    save_events(files, steps)
    return folder


def save_events(files: RunFolder, steps: int) -> None:
    """Phases of two ranks; the second learns for a second longer, and the first waits for it."""
    files.events().parent.mkdir(parents=True, exist_ok=True)
    for rank in (0, 1):
        lines: list[dict[str, Any]] = [{"time": 1000.0, "event": "start", "step": 0, "processes": 2}]
        for step in range(1, steps + 1):
            end = 1000.0 + 11 * (step - 1)
            for phase, seconds in (("sync", 0.5), ("rollout", 4.0), ("score", 0.5), ("train", 6.0)):
                end += seconds
                waited = 1.0 if (rank, phase) == (0, "train") else 0.0
                lines.append({"time": end, "event": "phase", "step": step, "phase": phase})
                lines[-1] |= {
                    "seconds": seconds,
                    "waited": waited,
                    "moved": ["+actor weights"] * (phase == "sync"),
                }
        files.events(rank).write_text("".join(json.dumps(line) + "\n" for line in lines))


def metrics(random_: random.Random, share: float, rewards: list[list[float]]) -> dict[str, float]:
    """What a step logs."""
    flat = [reward for group in rewards for reward in group]
    return {
        "reward/mean": sum(flat) / len(flat),
        "reward/zero_std_fraction": sum(len(set(group)) == 1 for group in rewards) / len(rewards),
        "length/mean": 40 - 15 * share,
        "length/truncated_fraction": 0.1,
        "entropy": 1.7 - 1.5 * share,
        "grad_norm": 1.2 + random_.gauss(0, 0.1),
        "kl": 0.05 * share,
        "mismatch/mean_abs": 1e-5,
        "loss": random_.gauss(0, 0.01),
        "seconds/rollout": 4.0 + random_.random(),
        "seconds/score": 0.5,
        "seconds/train": 6.0,
        "seconds/sync": 0.2,
        "seconds/step": 11.0,
        "memory/rss_gib": 4.2 + 0.1 * random_.random(),
        "counts/tokens_read": 4000,
    }


def save_step(
    folder: Path, step: int, random_: random.Random, skill: float, groups: int, siblings: int
) -> list[list[float]]:
    """Saves a step's responses, and returns their rewards by group."""
    made: list[tuple[Trajectory, list[str]]] = []
    rewards = []
    for group in range(groups):
        asked, target = question(random_)
        prompt = Prompt(f"sums/{step}-{group}", [1], [{"role": "user", "content": asked}], target, "sums")
        found = [
            response(random_, prompt, (step - 1) * groups + group, skill, uses_tool=group == 1)
            for _ in range(siblings)
        ]
        own = [t.reward for t, _ in found]
        center, spread = float(np.mean(own)), float(np.std(own)) or 1.0
        for t, pieces in found:
            advantage = torch.full((len(pieces),), (t.reward - center) / spread)
            t.columns |= {
                "rewards": torch.zeros(len(pieces)),
                "advantages": advantage,
                "returns": torch.full((len(pieces),), t.reward),
            }
        if group == 2:
            for t, _ in found:
                t.made = {"image": np.full((16, 16, 3), int(255 * t.reward), dtype=np.uint8)}
        made += found
        rewards.append(own)
    texts = iter([pieces for _, pieces in made])
    trajectories.save(folder, step, [t for t, _ in made], pieces=lambda _ids: next(texts))
    return rewards


def evaluate(folder: Path, random_: random.Random, questions: int) -> dict[str, float]:
    """Held-out responses before and after, of the same prompts in every run; returns the scores."""
    scores = {}
    held_out = random.Random(99)
    asked = [question(held_out) for _ in range(questions)]
    for when, skill in (("before", 0.2), ("after", 0.85)):
        rows: list[dict[str, Any]] = []
        for n, (text, target) in enumerate(asked):
            prompt = Prompt(f"held/{n}", [1], [{"role": "user", "content": text}], target, "sums")
            t, _ = response(random_, prompt, 0, skill)
            rows.append(
                {
                    "id": prompt.id,
                    "source": "sums",
                    "messages": prompt.messages,
                    "target": target,
                    "response": t.answer,
                }
                | {
                    "finish": "stop",
                    "length": 20,
                    "reward": t.reward,
                    "parts": {"exact": t.reward},
                    "correct": t.reward == 1.0,
                }
            )
        mean = sum(row["reward"] for row in rows) / questions
        scores[when] = mean
        error = 1.96 * math.sqrt(mean * (1 - mean) / questions)
        score = {"mean": mean, "low": max(0.0, mean - error), "high": min(1.0, mean + error)}
        EvaluationFolder(RunFolder(folder).evaluation).write(
            when, {"sums": {"score": score, "questions": questions}}, rows
        )
    return scores


def uniform_run(folder: Path, text: str, *, steps: int = 6, groups: int = 3, siblings: int = 4) -> Path:
    """A run with one text in every place that a model or a record fills."""
    with Logger(folder, tensorboard=False) as logger:
        for step in range(1, steps + 1):
            logger.log(
                step,
                {
                    "reward/mean": step / 10,
                    "entropy": 1 / step,
                    "seconds/rollout": 1.0,
                    "loss": math.nan,
                    "counts/skipped_updates": 1.0,
                },
            )
            uniform_step(folder, step, text, groups, siblings)
    RunFolder(folder).config.write_text(f"steps: {steps}\nmodel:\n  path: /srv/models/small\n  imports: []\n")
    for when, right in (("before", False), ("after", True)):
        rows = [
            {"id": f"p{n}", "source": "sums", "messages": [{"role": "user", "content": text}], "target": text}
            | {
                "response": text,
                "finish": "stop",
                "length": 2,
                "reward": float(right),
                "parts": {},
                "correct": right,
            }
            for n in range(2)
        ]
        score = {"mean": float(right), "low": 0.0, "high": 1.0}
        EvaluationFolder(RunFolder(folder).evaluation).write(
            when, {"sums": {"score": score, "questions": 2}}, rows
        )
    RunFolder(folder).write_format()
    return folder


def uniform_step(folder: Path, step: int, text: str, groups: int, siblings: int) -> None:
    """Saves one step of it."""
    rows = []
    for group in range(groups):
        prompt = Prompt(f"q{group}", [1], [{"role": "user", "content": text}], text, "sums")
        for n in range(siblings):
            t = Trajectory(
                prompt, group, [7, 8], [True, False], [-0.5, -1.0], "stop", answer=text, reward=n / 4
            )
            t.use, t.learned = (
                "trained",
                {"new": torch.tensor([-0.25, -1.0]), "weight": torch.tensor([0.5, 0.0])},
            )
            t.columns = {"advantages": torch.tensor([n - 1.5, 0.0])}
            t.parts = {"exact": n / 4}
            t.said = (
                [{"role": "assistant", "content": text}, {"role": "tool", "content": text}] if n == 0 else []
            )
            rows.append(t)
    trajectories.save(folder, step, rows, pieces=lambda ids: [text] * len(ids))
